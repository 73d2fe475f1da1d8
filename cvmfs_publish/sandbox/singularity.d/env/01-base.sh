#!/bin/sh
# Nothing: the runtime sets what every container has.
