{#
site: name of the site
program: absolute path of cvmfs-run on nodes
image: the image in the example
options: what follows #$ on lines of its own, as -l h_rt=1:00:00
exit_map: statuses of jobs that are not started, as Grid Engine understands them
#}
#!/bin/sh
# A job in a published image, for Grid Engine at the site {{ site }}.  Rendered by cvmfs-publish.
#
# Copy it, name your image and command in the last line, and submit the copy: qsub submit.sh
#$ -N cvmfs-run
#$ -cwd
#$ -j y
#$ -S /bin/sh
# The starter of the queue leaves this script on the host: it starts the image itself.
#$ -v CVMFS_RUN_IMAGE=none
{% for line in options %}
#$ {{ line }}
{% endfor %}
#
# With `qsub -notify` the command gets USR1 before it is suspended and USR2 before it is killed, as
# long before as the queue's `notify` says.  Both end a command that does not handle them.

# An image that was published just now: --min-revision N before it, N as `publish` tells.
# `exec`: signals reach the command, and its status is the job's.  A job that could not be started
# is queued again (99) if another node may do better; else it is put in error state (100), which
# `qmod -cj` clears.  For MPI started inside the image, show it the hosts: --bind "$PE_HOSTFILE"
exec {{ program | sh }} --exit-map {{ exit_map }} {{ image | sh }} -- cat /etc/os-release
