#!/bin/sh
# What the image runs: every scan of the inputs, one label map each. More options of flaresemi_predict may follow.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec flaresemi_predict -i "$here/inputs" -o "$here/outputs" -m "$here/model" "$@"
