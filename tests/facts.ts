/** Facts of a host, as plain values: a session of "dev" that logind kills, on systemd 252. */

import type { Facts, Place } from "../host.ts";

export const session = { kind: "session" as const, owner: 1000, unit: "session-3.scope" } satisfies Place;
export const scope = { kind: "user-manager" as const, owner: 1000, unit: "run-r29.scope" } satisfies Place;
export const perConnection = "sshd@7-10.0.0.1:22-10.0.0.2:5000.service";

export const factsOf = (changes: Partial<Facts> = {}): Facts => ({
  uid: 1000,
  user: "dev",
  systemd: true,
  systemdVersion: 252,
  place: session,
  killed: "yes",
  policy: "KillUserProcesses=yes",
  stopDelayUs: 10_000_000,
  linger: "no",
  scope: "yes",
  ...changes,
});
