// An OpenID provider with one client, for tests/oidc.rs. Prints a line of JSON for each thing that happens.
//
// PORT (0: any), CLIENT_SECRET, TOKEN_SECONDS: life of a token, AUTH_METHOD: how the client has to prove itself,
// TLS_CRT and TLS_KEY: files, for TLS.

import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { Provider } from 'oidc-provider';

const { PORT = '0', CLIENT_SECRET = 's3cret', TOKEN_SECONDS = '600', AUTH_METHOD = 'client_secret_basic' } = process.env;
const { TLS_CRT, TLS_KEY } = process.env;

const say = (event) => console.log(JSON.stringify(event));

// The issuer's name holds the port, so listening comes first.
const server = TLS_CRT
  ? https.createServer({ cert: readFileSync(TLS_CRT), key: readFileSync(TLS_KEY) })
  : http.createServer();
server.listen(Number(PORT), '127.0.0.1', () => {
  const { port } = server.address();
  const issuer = TLS_CRT ? `https://localhost:${port}` : `http://127.0.0.1:${port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: 'gateway',
        client_secret: CLIENT_SECRET,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: AUTH_METHOD,
      },
    ],
    clientAuthMethods: [AUTH_METHOD],
    // Taken into the request's parameters, so that it can be told.
    extraParams: ['audience'],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true },
    },
    ttl: { ClientCredentials: Number(TOKEN_SECONDS) },
  });
  provider.on('grant.success', (ctx) => {
    say({ event: 'issued', audience: ctx.oidc.body.audience, agent: ctx.get('user-agent') });
  });
  provider.on('grant.error', (ctx, error) => say({ event: 'refused', error: error.error }));
  server.on('request', provider.callback());
  say({ event: 'listening', issuer });
});
