cd /tmp/lab; export PYTHONPATH=/tmp/lab
for f in cheetah_vel ant_dir cheetah_dir; do
 /usr/bin/env time -f "$f %e s" /work/main/.venv/bin/pd-pipeline run behavior_policies --key $f 2>&1
done
