"""An S3 server on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

SECRET = "a-secret-that-only-these-tests-have"
NOWHERE = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}
"""Of the environment: credentials come from nowhere else, and the server is reached without a proxy."""
NOWHERE |= {"NO_PROXY": "127.0.0.1"}


@contextmanager
def serving(bucket: str) -> Iterator[str]:
    """The address of a server with one bucket."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        s3 = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET
        )
        s3.create_bucket(Bucket=bucket)
        yield address
    finally:
        server.stop()


def environment(address: str) -> dict[str, str]:
    """What s3fs needs in the environment to reach the server."""
    return NOWHERE | {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
