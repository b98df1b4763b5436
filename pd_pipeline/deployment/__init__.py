"""The policy out: one tuned policy as a folder that acts without the pipeline, an ONNX file or a video."""
