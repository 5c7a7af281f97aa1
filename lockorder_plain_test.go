//go:build !lockorder

package main

// brokenLockOrder is what the build with the tag lockorder finds.
func brokenLockOrder() []string { return nil }
