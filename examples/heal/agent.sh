#!/bin/sh
# What [heal] command runs: gives the case to any agent program that reads a prompt and writes text.
# AGENT is its command line, for example "my-agent --print"; taud must have it in its environment.
set -eu
here=$(dirname "$0")
answer=$({ cat "$here/prompt.md"; cat; } | sh -c "$AGENT")
printf '%s\n' "$answer" | sed '/^```/d'
