#!/bin/sh
# Sends an image to flaresemi_serve and writes its label map beside it; needs curl and nothing else.
#
#   flaresemi_serve -d my_dataset                              prints address and token
#   TOKEN=... sh segment.sh scan.nii.gz [ADDRESS]              writes scan_labels.nii.gz and scan_labels.json
set -eu
image=$1 address=${2:-http://127.0.0.1:8390}
name=$(basename "$image")
stem=${image%.nii.gz}_labels
# The token comes from standard input: what stands in a command can be read by every user of the machine.
ask() { printf 'header = "Authorization: Bearer %s"\n' "$TOKEN" | curl --silent --show-error --fail-with-body --config - "$@"; }

ask --data-binary "@$image" --header "Content-Type: application/octet-stream" \
    --output "$stem.json" "$address/segment?name=$name"
result=$(sed 's/.*"labels": *"\([^"]*\)".*/\1/' "$stem.json")
ask --output "$stem.nii.gz" "$address$result"
echo "$stem.nii.gz"
