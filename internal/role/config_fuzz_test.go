package role

import (
	"testing"

	"postern/catalog"
)

func FuzzParse(f *testing.F) {
	f.Add("role: gateway\nname: x\nsite_root: y\nlisten: {https: ':1'}\n")
	f.Add("role: management-point\nstore: '@secret'\n")
	f.Add("a: &a [*a]\n")
	f.Add("role: connector\nname: \"\\x00\"\ngateways: [{url: 'https://[::1]:443', pin: ab}]\n")
	f.Fuzz(func(t *testing.T, content string) {
		if _, err := parse("role.yaml", []byte(content)); err != nil && catalog.CodeOf(err) == "" {
			t.Errorf("error without a code: %v", err)
		}
	})
}
