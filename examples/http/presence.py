"""The HTTP API from Python, with its standard library only.

    python3 presence.py online USER...
    python3 presence.py emit ROOM EVENT TEXT
    python3 presence.py remove USER
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

URL = os.environ.get("PRESENCE_URL", "http://localhost:3000")
KEY = os.environ["PRESENCE_API_KEY"]


class PresenceError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code  # such as "unavailable": see the table of error codes


def call(method, path, body=None):
    """Returns the decoded answer, None if there is none."""
    request = urllib.request.Request(URL + path, method=method, headers={"Authorization": "Bearer " + KEY})
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            answer = response.read()
            return json.loads(answer) if answer else None
    except urllib.error.HTTPError as error:
        told = json.loads(error.read())
        raise PresenceError(told["code"], told["error"]) from None


def online(users):
    """Tells of at most 1000 users, in their order, whether they are online."""
    return call("POST", "/v1/users", {"userIds": users})["users"]


def emit(room, event, *args):
    """Sends an event to the connections in a room."""
    call("POST", f"/v1/rooms/{urllib.parse.quote(room, safe='')}/emit", {"event": event, "args": args})


def remove(user):
    """Removes a user from all rooms, ends the connections, and returns in how many places the user was."""
    return call("DELETE", f"/v1/users/{urllib.parse.quote(user, safe='')}?disconnect=true")["removed"]


def main(command, *args):
    if command == "online":
        for user in online(args):
            print(user["userId"], "online" if user["online"] else "offline", user["conns"])
    elif command == "emit":
        room, event, text = args
        emit(room, event, {"text": text})
    elif command == "remove":
        print("removed", remove(*args))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except PresenceError as error:
        sys.exit(str(error))
