//go:build !race

package explain

// sparse is of how many incidents one comes in each variant.
const sparse = 3
