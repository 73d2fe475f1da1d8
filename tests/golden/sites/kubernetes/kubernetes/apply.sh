#!/bin/sh
# Bring the launcher and the volume of CernVM-FS into a cluster, for jobs of the site kubernetes.
# Rendered by cvmfs-publish.  Run it where this folder lies, with a kubectl that may do it; again
# after a new rendering.
#
#   apply.sh [OPTION...]      options are handed to kubectl, as --context NAME or --dry-run=server
#
# (server-side: the launcher is too long for the annotation in which kubectl keeps what it applied)

set -eu
accounts='root:x:0:0:root:/root:/bin/sh
job:x:1000:1000:job:/scratch:/bin/sh
'
here=$(cd "$(dirname -- "$0")" && pwd -P)
# Parts of the launcher, and the account of jobs, are one ConfigMap that job.yaml mounts.
kubectl create configmap cvmfs-run --namespace default \
  --from-file="$here/../bin/cvmfs-run" --from-file="$here/../bin/cvmfs-fetch" \
  --from-file="$here/../etc/site.conf" \
  --from-literal=passwd="$accounts" --dry-run=client --output=yaml |
  kubectl apply --server-side --filename=- "$@"
kubectl apply --filename="$here/volume.yaml" "$@"
# Last, because a ConfigMap has 1 MiB at the most, and jobs start without.
if [ -f "$here/../etc/fallback.txt" ]; then
  kubectl create configmap cvmfs-run-list --namespace default \
    --from-file="$here/../etc/fallback.txt" --dry-run=client --output=yaml |
    kubectl apply --server-side --filename=- "$@"
fi
