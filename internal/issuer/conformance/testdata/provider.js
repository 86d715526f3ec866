// A certified OpenID provider on loopback, for the tests of auth/entra. It is started by
// the Go test, prints its issuer as one line, and ends when its input ends.
import { generateKeyPairSync, webcrypto } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

// Debian's Node.js 18 lacks some of what the provider uses.
globalThis.crypto ??= webcrypto;
for (const [name, change] of [['toSorted', 'sort'], ['toReversed', 'reverse']]) {
  Array.prototype[name] ??= function copied(...given) { return [...this][change](...given); };
}
URL.parse ??= (text, base) => (URL.canParse(text, base) ? new URL(text, base) : null);

const { POSTERN_SECRET: secret, POSTERN_CLAIMS: claims } = process.env;
const device = JSON.parse(claims);

const jwk = (kind, options, extra) => ({
  ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }),
  use: 'sig',
  ...extra,
});

// One resource for each algorithm; the resource decides the form of its tokens.
const resources = {
  'urn:postern:rs256': 'RS256',
  'urn:postern:es256': 'ES256',
  'urn:postern:ps256': 'PS256',
};

const client = (id) => ({
  client_id: id,
  client_secret: secret,
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
});

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [client('device'), client('service')],
    clientDefaults: { id_token_signed_response_alg: 'RS256' },
    jwks: {
      keys: [
        jwk('rsa', { modulusLength: 2048 }, { kid: 'rsa', alg: 'RS256' }),
        jwk('ec', { namedCurve: 'P-256' }, { kid: 'ec', alg: 'ES256' }),
        jwk('rsa', { modulusLength: 2048 }, { kid: 'pss', alg: 'PS256' }),
      ],
    },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'register',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: resources[resource] } },
        }),
      },
    },
    extraTokenClaims: (ctx, token) =>
      token.clientId === 'device' ? device : { tid: device.tid },
  });
  server.on('request', provider.callback());
  process.stdout.write(`${issuer}\n`);
});

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
