#!/bin/sh
# Select one app (SCIF) of this image: its commands, libraries and variables come first.
if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    export SINGULARITY_APPNAME
    SCIF_APPS=/scif/apps
    SCIF_APPROOT="$SCIF_APPS/$SINGULARITY_APPNAME"
    if [ ! -d "$SCIF_APPROOT" ]; then
        echo "this image has no app $SINGULARITY_APPNAME" >&2
        exit 1
    fi
    export SCIF_APPS SCIF_APPROOT
    PATH="$SCIF_APPROOT:$PATH"
    if [ -d "$SCIF_APPROOT/bin" ]; then
        PATH="$SCIF_APPROOT/bin:$PATH"
    fi
    export PATH
    if [ -d "$SCIF_APPROOT/lib" ]; then
        LD_LIBRARY_PATH="$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export LD_LIBRARY_PATH
    fi
    for script in "$SCIF_APPROOT"/scif/env/*.sh; do
        # shellcheck disable=SC1090 # which files are there is up to the image
        [ -f "$script" ] && . "$script"
    done
fi
