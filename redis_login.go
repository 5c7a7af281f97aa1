package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// maxPasswordBytes bounds the file with the password.
const maxPasswordBytes = 64 << 10

// redisLogin is the login of PRESENCE_REDIS_USERNAME and PRESENCE_REDIS_PASSWORD_FILE. What is "" is left to the URL.
type redisLogin struct {
	username, passwordFile string
}

func (config Config) redisLogin() redisLogin {
	return redisLogin{config.RedisUsername, config.RedisPasswordFile}
}

// apply has every new connection to Redis, also one for Pub/Sub and one to any server of a cluster, read the password anew:
// it may change without a restart. The login to sentinels is that of the URL.
func (l redisLogin) apply(o *redis.UniversalOptions) {
	o.Username = cmp.Or(l.username, o.Username)
	if l.passwordFile == "" {
		return
	}
	username := o.Username
	o.Username, o.Password = "", ""
	o.CredentialsProviderContext = func(context.Context) (string, string, error) {
		password, err := l.password()
		return username, password, err
	}
}

// password is the content of the file without the line breaks at its end. The error is a line about the variable.
func (l redisLogin) password() (string, error) {
	text, err := readSmallFile(l.passwordFile, maxPasswordBytes)
	password := strings.TrimRight(string(text), "\r\n")
	if err == nil && password == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fmt.Errorf("PRESENCE_REDIS_PASSWORD_FILE=%q: must be a file with a password: %w", l.passwordFile, err)
	}
	return password, nil
}

// check reads the file, if there is to be one.
func (l redisLogin) check() error {
	if l.passwordFile == "" {
		return nil
	}
	_, err := l.password()
	return err
}
