import createClient, { type Middleware } from "openapi-fetch";

import { authorization } from "../session/token";
import { problemOf, unreachable } from "./problem";
import type { paths } from "./openapi";

let tokenRefused = (): void => undefined;

/** `react` is called whenever the gateway says that the token is wrong. */
export function onRefusedToken(react: () => void): void {
  tokenRefused = react;
}

const asOurs: Middleware = {
  onRequest({ request }) {
    for (const [name, value] of Object.entries(authorization())) request.headers.set(name, value);
  },
  async onResponse({ response }) {
    if (response.ok) return;
    if (response.status === 401) tokenRefused();
    throw problemOf(response.status, await response.json().catch(() => null));
  },
  onError() {
    return unreachable();
  },
};

/** Every call of the contract, by its path. A refused one throws a Problem. */
export const api = createClient<paths>({ baseUrl: "" });
api.use(asOurs);

/** The body of an answer; a refused call has thrown before. */
export async function answer<T>(call: Promise<{ data?: T }>): Promise<T> {
  return (await call).data as T;
}
