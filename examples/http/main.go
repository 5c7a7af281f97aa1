// The HTTP API from Go, with its standard library only.
//
//	go run . online USER...
//	go run . emit ROOM EVENT TEXT
//	go run . remove USER
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"
)

var client = http.Client{Timeout: 5 * time.Second}

// apiError is an answer that says what is wrong.
type apiError struct {
	Code    string `json:"code"` // such as "unavailable": see the table of error codes
	Message string `json:"error"`
}

func (e apiError) Error() string { return e.Code + ": " + e.Message }

// call sends body as JSON, unless it is nil, and decodes the answer into answer, unless that is nil.
func call(method, path string, body, answer any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequest(method, cmp.Or(os.Getenv("PRESENCE_URL"), "http://localhost:3000")+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("PRESENCE_API_KEY"))
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		var failed apiError
		if err := json.NewDecoder(response.Body).Decode(&failed); err != nil {
			return fmt.Errorf("%s %s: %s", method, path, response.Status)
		}
		return failed
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// userStatus tells whether a user is online.
type userStatus struct {
	UserID     string `json:"userId"`
	Online     bool   `json:"online"`
	Conns      int    `json:"conns"`
	LastSeenMs int64  `json:"lastSeenMs"` // milliseconds since 1970; 0 = the user is online, or it is not known
}

// online tells of at most 1000 users, in their order, whether they are online.
func online(users []string) ([]userStatus, error) {
	var answer struct {
		Users []userStatus `json:"users"`
	}
	err := call(http.MethodPost, "/v1/users", map[string]any{"userIds": users}, &answer)
	return answer.Users, err
}

// emit sends an event to the connections in a room.
func emit(room, event string, args ...any) error {
	return call(http.MethodPost, "/v1/rooms/"+url.PathEscape(room)+"/emit", map[string]any{"event": event, "args": args}, nil)
}

// remove removes a user from all rooms, ends the connections, and returns in how many places the user was.
func remove(user string) (removed int, err error) {
	var answer struct {
		Removed int `json:"removed"`
	}
	err = call(http.MethodDelete, "/v1/users/"+url.PathEscape(user)+"?disconnect=true", nil, &answer)
	return answer.Removed, err
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 1 && args[0] == "online":
		users, err := online(args[1:])
		for _, u := range users {
			status := "offline"
			if u.Online {
				status = "online"
			}
			fmt.Println(u.UserID, status, u.Conns)
		}
		return err
	case len(args) == 4 && args[0] == "emit":
		return emit(args[1], args[2], map[string]string{"text": args[3]})
	case len(args) == 2 && args[0] == "remove":
		removed, err := remove(args[1])
		if err == nil {
			fmt.Println("removed", removed)
		}
		return err
	}
	return fmt.Errorf("usage: online USER... | emit ROOM EVENT TEXT | remove USER")
}
