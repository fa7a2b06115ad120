export interface Peer {
  /** Names the connection in logs and in `detached` messages: "c12". */
  readonly id: string;
  /** Sends one message in the peer's own framing. Returns false when the peer has fallen behind; the message is sent all the same. */
  send(message: object): boolean;
  /** Bytes handed to send() and not yet taken by the kernel. */
  readonly unsentBytes: number;
  /** Calls `listener` each time a peer that had fallen behind has caught up. Returns a function that takes it back. */
  onDrain(listener: () => void): () => void;
  /** Calls `listener` once, when the connection has closed. Returns a function that takes it back. */
  onClose(listener: () => void): () => void;
}

/** The `params` of a request: an object, or nothing (an empty object). By-position params are refused. */
export type Params = Record<string, unknown>;
export interface Caller { readonly peer: Peer; /** server.authenticate was called with a good token: later requests need no `auth`. */ authenticated: boolean; /** A good token was seen at least once: the limits for strangers are off. */ known: boolean }
export type Method = (params: Params, caller: Caller) => unknown;
export type Methods = ReadonlyMap<string, Method>;
