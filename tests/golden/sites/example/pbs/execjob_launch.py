"""Start jobs of OpenPBS in their image, at the site example.  Rendered by cvmfs-publish.

An execjob_launch hook, run by pbs_mom as root right before a job's shell or program is started;
hook.qmgr installs it.  For Python 2.7 and 3, whichever the installation of OpenPBS has.

A job has an image if $CVMFS_RUN_IMAGE names one (`qsub -v CVMFS_RUN_IMAGE=...`; `none`: no image),
or the site has a default image.  Other jobs are not touched, and neither is any job when something
is wrong with this hook itself.
"""

import os

import pbs

STARTER = "/opt/cvmfs-run/pbs/job_starter"
DEFAULT_IMAGE = True


def wants_image(env):
    image = env.get("CVMFS_RUN_IMAGE", "")
    return image != "none" and bool(image or DEFAULT_IMAGE)


def launch(event):
    """Put the starter before the job; return a message if this node cannot run it."""
    if not wants_image(event.env):
        return ""
    if not os.access(STARTER, os.X_OK):
        return "cvmfs-run: %s is missing on this node; the job is tried again" % STARTER
    program = str(event.progname)
    words = [str(word) for word in event.argv]
    if program != STARTER:  # a second hook of the kind may have been here
        event.argv = [STARTER, program] + words[1:]
        event.progname = STARTER
    return ""


event = pbs.event()
try:
    problem = launch(event)
except Exception as exc:  # whatever it is: a job must not be lost through it
    pbs.logmsg(pbs.LOG_WARNING, "cvmfs-run: hook not applied: %s: %s" % (type(exc).__name__, exc))
    problem = ""
if problem:
    event.job.rerun()
    event.reject(problem)
event.accept()
