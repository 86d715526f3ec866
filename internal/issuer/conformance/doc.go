// Package conformance holds a test alone: it runs a certified OpenID provider, the npm
// package oidc-provider, as a process of its own, and has auth/entra fetch its keys and
// judge its tokens. What is shown is that a company without Entra can onboard another
// provider, and that our stand-in is not the only thing our code agrees with.
//
// It needs Node.js and, once, "npm ci" in the folder testdata; "make test" sees to both.
package conformance
