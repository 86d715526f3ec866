//go:build !race

package lab_test

// slowness is how much longer things may take on a busy machine.
const slowness = 3
