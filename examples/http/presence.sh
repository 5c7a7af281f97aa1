#!/bin/sh
# The HTTP API from a shell, with curl.
#
#   sh presence.sh online USER...
#   sh presence.sh emit ROOM EVENT TEXT
#   sh presence.sh remove USER
set -eu
url=${PRESENCE_URL:-http://localhost:3000}

# call METHOD PATH [BODY] prints the answer, and fails if it is an error.
call() {
  curl -sS --fail-with-body --max-time 5 -X "$1" -H "Authorization: Bearer $PRESENCE_API_KEY" -H 'Content-Type: application/json' ${3+-d "$3"} "$url$2"
}

# json prints a text without control characters as JSON.
json() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"; }

# encode prints an id as it goes into a path: each byte as %xx.
encode() { printf %s "$1" | od -An -v -tx1 | tr -d '\n' | tr ' ' '%'; }

command=$1
shift
case $command in
online)
  ids=
  for user in "$@"; do ids=$ids${ids:+,}$(json "$user"); done
  call POST /v1/users "{\"userIds\":[$ids]}"
  ;;
emit) call POST "/v1/rooms/$(encode "$1")/emit" "{\"event\":$(json "$2"),\"args\":[{\"text\":$(json "$3")}]}" ;;
remove) call DELETE "/v1/users/$(encode "$1")?disconnect=true" ;;
*) exit 2 ;;
esac
echo
