package main

import (
	"fmt"
	"runtime/debug"
)

// version is that of the newest entry in CHANGELOG.md.
const version = "0.9.0"

// build says from what this program was built.
type build struct {
	goVersion string
	revision  string // of the repository, with "-dirty" where files were changed; "" if that is not known
}

func thisBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return build{}
	}
	b := build{goVersion: info.GoVersion}
	dirty := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if b.revision != "" {
		b.revision += dirty
	}
	return b
}

// versionLine is what -version prints.
func versionLine() string {
	b := thisBuild()
	if b.revision == "" {
		b.revision = "unknown"
	}
	return fmt.Sprintf("presence %s, %s, revision %s", version, b.goVersion, b.revision)
}
