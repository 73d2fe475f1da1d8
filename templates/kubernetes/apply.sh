{#
site: name of the site
namespace: namespace of the jobs
#}
#!/bin/sh
# Bring the launcher and the volume of CernVM-FS into a cluster, for jobs of the site {{ site }}.
# Rendered by cvmfs-publish.  Run it where this folder lies, with a kubectl that may do it; again
# after a new rendering.
#
#   apply.sh [OPTION...]      options are handed to kubectl, as --context NAME or --dry-run=client

set -eu
here=$(cd "$(dirname -- "$0")" && pwd -P)
# Parts of the launcher are one ConfigMap, from which job.yaml mounts them.
kubectl create configmap cvmfs-run --namespace {{ namespace | sh }} \
  --from-file="$here/../bin/cvmfs-run" --from-file="$here/../bin/cvmfs-fetch" \
  --from-file="$here/../etc/site.conf" --dry-run=client --output=yaml |
  kubectl apply --filename=- "$@"
kubectl apply --filename="$here/volume.yaml" "$@"
