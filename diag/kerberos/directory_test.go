package kerberos

import (
	"strings"
	"testing"

	"postern/catalog"
	"postern/diag"
)

func TestJudgeOwners(t *testing.T) {
	aes, rc4, yes, no := 24, 4, true, false
	const http, host = "HTTP/mp.a2003.vm.local", "HOST/mp.a2003.vm.local"
	node := account{Name: "MP1$", DN: "CN=MP1", Computer: true, Names: []string{host}, Kinds: &aes}
	own := account{Name: "MP1$", DN: "CN=MP1", Computer: true, Names: []string{host, http}, Kinds: &aes}
	service := account{Name: "svc-mp", DN: "CN=svc-mp", Names: []string{http}, Kinds: &aes}
	reports := account{Name: "svc-reports", DN: "CN=svc-reports", Names: []string{http}, Kinds: &aes}
	tests := []struct {
		name     string
		accounts []account
		accepted *bool
		want     string
	}{
		{"nobody", nil, nil, "fail P915"},
		{"another host's names only", []account{{Name: "X$", Names: []string{"HOST/other.a2003.vm.local"}}}, nil, "fail P915"},
		{"the computer's HOST name serves", []account{node}, nil, "pass"},
		{"the computer has the HTTP name itself", []account{own}, nil, "pass"},
		{"a service account, and the server took the ticket", []account{service}, &yes, "pass"},
		{"a service account, not tried", []account{service}, nil, "warn P930"},
		{"another service's account: the fault of S0", []account{reports, node}, &no, "fail P930"},
		{"another service's account, and the server has its key", []account{reports, node}, &yes, "pass"},
		{"the computer's own, and the server did not take the ticket", []account{own}, &no, "warn P930"},
		{"another computer's", []account{{Name: "OLD$", DN: "CN=OLD", Computer: true, Names: []string{http}, Kinds: &aes}, node}, &no, "fail P930"},
		{"two accounts", []account{service, reports}, nil, "fail P929"},
		{"two computers with one HOST name", []account{node, {Name: "MP2$", DN: "CN=MP2", Computer: true, Names: []string{host}}}, nil, "fail P929"},
		{"other letter case", []account{{Name: "svc-mp", DN: "CN=svc-mp", Names: []string{"http/MP.A2003.vm.local"}, Kinds: &aes}}, &yes, "pass; pass P935"},
		{"no AES said", []account{{Name: "svc-mp", DN: "CN=svc-mp", Names: []string{http}}}, &yes, "pass; warn P932"},
		{"RC4 alone", []account{{Name: "MP1$", Computer: true, Names: []string{host}, Kinds: &rc4}}, nil, "pass; warn P932"},
		{"a disabled owner", []account{{Name: "svc-mp", Names: []string{http}, Disabled: true, Kinds: &aes}}, &yes, "fail P910; pass"},
	}
	for _, test := range tests {
		if got := states(judgeOwners("mp.a2003.vm.local", test.accounts, test.accepted)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestJudgeTrusts(t *testing.T) {
	parent := trust{Partner: "a2003.vm.local", Kind: 2, Attributes: 0x20}
	forest := trust{Partner: "a2003.vm.local", Kind: 2, Attributes: 0x8}
	external := trust{Partner: "a2003.vm.local", Kind: 2, Attributes: 0x4}
	realm := trust{Partner: "a2003.vm.local", Kind: 3}
	child := trust{Partner: "child.a2003.vm.local", Kind: 2, Attributes: 0x4}
	tests := []struct {
		name   string
		own    string
		trusts []trust
		want   string
	}{
		{"the same domain", "a2003.vm.local", nil, ""},
		{"parent and child", "child.a2003.vm.local", []trust{parent}, "pass"},
		{"forest trust", "contoso.local", []trust{forest}, "pass"},
		{"external trust: the fault of S0", "contoso.local", []trust{external}, "fail P933"},
		{"forest trust the other way only", "contoso.local", []trust{{Partner: "a2003.vm.local", Kind: 2, Attributes: 8, Inwards: true}}, "fail P916"},
		{"realm trust", "contoso.local", []trust{realm}, "pass"},
		{"no trust of its own", "contoso.local", []trust{{Partner: "other.example", Kind: 2, Attributes: 8}}, "skipped"},
		{"a name that only ends alike", "contoso.local", []trust{{Partner: "003.vm.local", Kind: 2}}, "skipped"},
		{"the nearest domain counts", "contoso.local", []trust{child, forest}, "pass"},
	}
	for _, test := range tests {
		if got := states(judgeTrusts(test.own, "mp.a2003.vm.local", test.trusts)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	if got := states(judgeTrusts("a2003.vm.local", "mp.child.a2003.vm.local", []trust{child})); got != "fail P933" {
		t.Errorf("a domain below ours with an external trust: %q", got)
	}
}

func TestJudgeQuota(t *testing.T) {
	ten, none := 10, 0
	for _, test := range []struct {
		quota *int
		want  string
	}{{&ten, "warn P937"}, {&none, ""}, {nil, ""}} {
		if got := states(judgeQuota("a2003.vm.local", test.quota)); got != test.want {
			t.Errorf("%v: %q, want %q", test.quota, got, test.want)
		}
	}
}

func TestDomainOf(t *testing.T) {
	for base, want := range map[string]string{"DC=A2003,DC=vm,DC=local": "a2003.vm.local", "": "", "no name": ""} {
		if got := domainOf(base); got != want {
			t.Errorf("%q: %q, want %q", base, got, want)
		}
	}
}

// Codes that MIT's KDC never answers.
func TestJudgeRefusal(t *testing.T) {
	r := newRun(Options{Server: "mp.a2003.vm.local"})
	for code, want := range map[int32]catalog.Code{8: catalog.CheckNameDuplicate, 14: catalog.CheckNoCommonEncryption, 12: catalog.CheckKDCRefused, 37: catalog.CheckClockSkew} {
		if got := r.judgeRefusal(t.Context(), &refusal{code: code, realm: "A2003.VM.LOCAL"}, r.serviceName(), []string{"A2003.VM.LOCAL"}); got.Code != want {
			t.Errorf("KDC error %d: %s, want %s", code, got.Code, want)
		}
	}
}

func states(findings []diag.Finding) string {
	var words []string
	for _, f := range findings {
		words = append(words, strings.TrimSpace(string(f.State)+" "+string(f.Code)))
	}
	return strings.Join(words, "; ")
}
