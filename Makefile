# Postern. The README names two commands: `go run ./cmd/postern lab` and `make test`.

GO      ?= go
FUZZ    ?= 5s
PACKAGES = postgresql openssl gcc libc6-dev krb5-kdc krb5-admin-server krb5-user curl python3-gssapi ip=iproute2 chromium=chromium node=nodejs npm=npm

# The certified OpenID provider that tests compare with, from npm.
PROVIDER = internal/issuer/conformance/testdata

AD_PACKAGES = samba samba-ad-provision samba-dsdb-modules samba-vfs-modules winbind python3-samba ldb-tools krb5-user attr acl

.PHONY: test test-ad check deps build fmt fuzz cross staticcheck bench clean

# test installs what the tests need on a fresh Debian machine and runs everything with the race detector.
test: $(PROVIDER)/node_modules/.package-lock.json
	$(GO) build ./...
	GORACE=atexit_sleep_ms=0 $(GO) test -race -timeout 12m ./...

$(PROVIDER)/node_modules/.package-lock.json: $(PROVIDER)/package-lock.json | deps
	npm ci --prefix $(PROVIDER) --ignore-scripts --no-audit --no-fund --loglevel=error

# test-ad runs what needs Active Directory, against Samba's, on loopback; it needs root and about 85 MB of packages.
test-ad:
	@./tools/deps.sh $(PACKAGES) $(AD_PACKAGES)
	$(GO) vet -tags ad ./internal/realms/... ./internal/lab ./diag/kerberos
	$(GO) test -tags ad -count=1 -timeout 10m -run Forest ./internal/realms ./internal/lab ./diag/kerberos

# deps installs the Debian packages that are missing; without root and sudo it prints the line to run.
deps:
	@./tools/deps.sh $(PACKAGES)

# check is test and more: format, vet, staticcheck, every fuzz target for a moment, and a build for each platform.
check: fmt test cross staticcheck
	$(GO) vet ./...
	$(MAKE) fuzz

# staticcheck is built from a module of its own, so that its dependencies are not ours.
staticcheck:
	cd tools && $(GO) build -o "$${TMPDIR:-/tmp}/postern-staticcheck" honnef.co/go/tools/cmd/staticcheck
	"$${TMPDIR:-/tmp}/postern-staticcheck" ./...

fmt:
	@bad="$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go'))"; [ -z "$$bad" ] || { echo "gofmt these:"; echo "$$bad"; exit 1; }

# fuzz runs every fuzz target for FUZZ each.
fuzz:
	@./tools/fuzz.sh $(FUZZ)

# cross builds what cannot be run on the machine at hand.
cross:
	CGO_ENABLED=0 GOOS=windows GOARCH=amd64 $(GO) build -o /dev/null ./cmd/postern
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/postern
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/postern

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o postern ./cmd/postern

# bench reruns the published figures; see bench/README.md.
bench:
	cd bench && ./run.sh

clean:
	rm -rf postern dist lab
