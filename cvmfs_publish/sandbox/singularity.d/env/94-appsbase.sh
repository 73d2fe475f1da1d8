#!/bin/sh
# Variables of the apps (SCIF) of this image.
