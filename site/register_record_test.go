package site

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

func seedCertificate(t *testing.T, name string) *ccm.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "ccm", "testdata", "seed", name))
	if err != nil {
		t.Fatal(err)
	}
	der, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ccm.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// seedRequest is the registration that S0 shows, as far as it shows it.
func seedRequest(t *testing.T) *ccm.RegistrationRequest {
	return &ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, SMSID: "GUID:EEAF9390-94EB-43AE-A0DE-F374E3E7E03B",
		Agent: ccm.Agent{Identity: "CCMSetup.exe", Version: "4.00.6221.1000"}, Signing: seedCertificate(t, "signing.hex"), Encryption: seedCertificate(t, "encryption.hex"), KeyType: 1,
		Properties: map[string]string{
			"netbios name": "WK02-020-51W", "fq name": "WK02-020-51W.Child.A2003.VM.local", "internetflag": "0", "hardwareid1": "2:D4D8AD1963DA464FC3EE60E5212310036AB9EDEC",
		},
	}
}

// TestRecordHoldsEveryFieldOfS0 compares with the arguments of spUpdateClientRegistration in S0 (protocol.md 3.7).
func TestRecordHoldsEveryFieldOfS0(t *testing.T) {
	request := seedRequest(t)
	got, err := recordOf("2P4", Caller{Proof: proof.Proof{Method: proof.Kerberos}}, request)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ccm.ParsePublicKeyBlob(got.PublicKey)
	if err != nil || !key.Equal(seedCertificate(t, "signing.hex").PublicKey) {
		t.Errorf("@PublicKey is not the blob of the signing key: %v", err)
	}
	want := Record{
		SiteCode: "2P4", Certificate: seedCertificate(t, "signing.hex").DER, Thumbprint: "E824658E489FDBB6481ED7788E74877FB9DBCF0B",
		EncKey: seedCertificate(t, "encryption.hex").DER, EncThumbprint: "6B186E7BC2B86B059FAE5E431C6C6CE40A943F3C", KeyType: 1, PublicKey: got.PublicKey,
		ValidFrom: time.Date(2009, 5, 19, 19, 34, 47, 0, time.UTC), ValidTo: time.Date(2109, 4, 26, 19, 34, 47, 0, time.UTC),
		HardwareID1: "2:D4D8AD1963DA464FC3EE60E5212310036AB9EDEC", ApprovalMethod: 1, IsIntegratedAuth: true, Version: "4.00.6221.1000",
		NetbiosName: "WK02-020-51W", FQDName: "WK02-020-51W.Child.A2003.VM.local",
	} // SMSID is set when the id is chosen; the rest is NULL or 0 in S0
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if len(got.Certificate) != 484 || len(got.EncKey) != 485 || len(got.PublicKey) != 148 {
		t.Errorf("lengths are %d, %d, %d, want 484, 485, 148", len(got.Certificate), len(got.EncKey), len(got.PublicKey))
	}
}

func TestRecordOfTheOtherFields(t *testing.T) {
	request := seedRequest(t)
	for name, value := range map[string]string{"deviceid": "phone-7", "smbiosid": "4C4C4544", "macaddress": "00:15:5D:01:02:03"} {
		request.Properties[name] = value
	}
	request.Agent.Type, request.KeyType, request.SignatureSMSID = 8, 2, "GUID:11111111-2222-4333-8444-555555555555"
	got, err := recordOf("LAB", Caller{Proof: proof.Proof{Method: proof.BulkToken, Account: `CHILD\WK02$`}}, request)
	if err != nil {
		t.Fatal(err)
	}
	if got.DeviceID != "phone-7" || got.SMBIOSID != "4C4C4544" || got.MACAddress != "00:15:5D:01:02:03" || got.AgentType != 8 || got.KeyType != 2 || got.Identity != `CHILD\WK02$` {
		t.Errorf("got %+v", got)
	}
	if got.ISVProxyID != "GUID:11111111-2222-4333-8444-555555555555" {
		t.Errorf("proxy is %q", got.ISVProxyID)
	}
	if got.ApprovalMethod != 0 || got.IsIntegratedAuth {
		t.Error("a bulk token counts as integrated authentication")
	}
	request.SignatureSMSID = string(request.SMSID)
	if got, _ := recordOf("LAB", Caller{}, request); got.ISVProxyID != "" {
		t.Errorf("a device that signs for itself has the proxy %q", got.ISVProxyID)
	}
	for flag, want := range map[string][2]bool{"0": {false, false}, "1": {false, true}, "2": {true, true}, "": {false, false}, "yes": {false, false}} {
		request.Properties["internetflag"] = flag
		got, _ := recordOf("LAB", Caller{}, request)
		if [2]bool{got.AlwaysInternet, got.InternetEnabled} != want {
			t.Errorf("InternetFlag %q: always %t, enabled %t, want %v", flag, got.AlwaysInternet, got.InternetEnabled, want)
		}
	}
}

// TestC75_S0sKeysNeedTheLegacySetting: 1024 bits and SHA-1, as the clients of 2009.
func TestC75_S0sKeysNeedTheLegacySetting(t *testing.T) {
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	request := seedRequest(t)
	if err := usable(request, now, false); catalog.CodeOf(err) != catalog.RegistrationWeakKey {
		t.Errorf("without the setting: got %v", err)
	}
	if err := usable(request, now, true); err != nil || !weak(request) {
		t.Errorf("with the setting: got %v, weak %t", err, weak(request))
	}
}

// TestC75_EverySHA1IdIsWeak: ccm reads all of these, with spaces around, as SHA-1 or as nothing.
func TestC75_EverySHA1IdIsWeak(t *testing.T) {
	for algorithm, strong := range map[string]bool{
		"": false, "1.2.840.113549.1.1.5": false, " 1.2.840.113549.1.1.5 ": false, "1.3.14.3.2.26": false, "1.3.14.3.2.29": false, "\t1.3.14.3.2.29": false,
		"1.2.840.113549.1.1.4": false, "none": false,
		"1.2.840.113549.1.1.11": true, "1.2.840.113549.1.1.12": true, "1.2.840.113549.1.1.13": true,
		"2.16.840.1.101.3.4.2.1": true, "2.16.840.1.101.3.4.2.2": true, "2.16.840.1.101.3.4.2.3": true, " 2.16.840.1.101.3.4.2.1": true,
	} {
		if got := ccm.StrongHash(algorithm); got != strong {
			t.Errorf("%q: strong is %t, want %t", algorithm, got, strong)
		}
	}
}

// TestRecordsDifferInEveryField: a field that equal forgets would never be updated.
func TestRecordsDifferInEveryField(t *testing.T) {
	base := Record{Certificate: []byte{1}, EncKey: []byte{2}, PublicKey: []byte{3}}
	if !base.equal(base) {
		t.Fatal("a record differs from itself")
	}
	derived := map[string]bool{"Thumbprint": true, "EncThumbprint": true} // of Certificate and EncKey
	kind := reflect.TypeFor[Record]()
	for i := range kind.NumField() {
		other := base
		switch field := reflect.ValueOf(&other).Elem().Field(i); field.Interface().(type) {
		case time.Time:
			field.Set(reflect.ValueOf(time.Unix(1, 0)))
		case []byte:
			field.SetBytes([]byte("other"))
		case bool:
			field.SetBool(true)
		case int:
			field.SetInt(7)
		default:
			field.SetString("other")
		}
		if base.equal(other) != derived[kind.Field(i).Name] {
			t.Errorf("a record with another %s: equal is %t", kind.Field(i).Name, base.equal(other))
		}
	}
}
