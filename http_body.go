package main

import (
	"context"
	"errors"
	"io"
	"net/http"
)

// maxBody is how many bytes the body of a request may have: enough for maxUsersAsked ids of 200 bytes, escaped as usual.
const maxBody = 1 << 20

// withBody makes the function of a route that takes a body. The time for the answer begins when the
// body is there. What the body claims to be does not matter: it has to be JSON in UTF-8.
func withBody(respond func(ctx context.Context, r *http.Request, body []byte) ([]byte, error)) func(context.Context, *http.Request) ([]byte, error) {
	return func(_ context.Context, r *http.Request) ([]byte, error) {
		body, refused := readBody(r)
		if refused != nil {
			return nil, refused
		}
		ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
		defer cancel()
		return respond(ctx, r, body)
	}
}

// readBody returns the body of a request. A longer one is httpTooLarge, and not read if it says so itself.
func readBody(r *http.Request) ([]byte, *Error) {
	tooLarge := &Error{Code: httpTooLarge, Message: "the body may have at most 1 MiB"}
	if r.ContentLength > maxBody {
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return nil, tooLarge
	case err != nil:
		return nil, invalid("the body did not arrive whole")
	}
	return body, nil
}
