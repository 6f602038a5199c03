"""KV Connect: Deno KV's remote protocol over HTTP."""
