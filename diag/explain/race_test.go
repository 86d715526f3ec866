//go:build race

package explain

// sparse is of how many incidents one comes in each variant. The race detector makes reading ten times as slow.
const sparse = 12
