/**
 * Asks systemd over D-Bus, as busctl, loginctl and systemd-run do: calls of methods and their answers, over one connection.
 *
 * Each of these tools is a process of 10 ms, and a connection takes one. After the D-Bus Specification, "Type System", "Message Protocol" and
 * "Authentication Protocol"; the interfaces are those of org.freedesktop.login1(5) and org.freedesktop.systemd1(5).
 */

import { connect } from "node:net";
import { reasonOf } from "./failure.ts";

export interface BusCall {
  /** The last part of the service's name: "login1" is org.freedesktop.login1. */
  service: string;
  /** What follows /org/freedesktop/<service> in the object's path: nothing for the service itself. */
  object?: string;
  /** What follows org.freedesktop. in the interface's name: <service>.Manager by default. */
  owner?: string;
  method: string;
  /** The types of the values. Known are y b u t s o g v, arrays and structs of them; structs may be in structs, and in these no others. */
  signature?: string;
  /** A variant is a pair: its type, and the value. */
  values?: unknown[];
}

/** The first value that a method returned; or why it returned nothing, in the words of who refused. */
export interface BusAnswer {
  value?: unknown;
  problem?: string;
}

/** A call that reads a property. */
export function getProperty(service: string, name: string, object = "", owner = "Manager"): BusCall {
  return {
    service,
    object,
    owner: "DBus.Properties",
    method: "Get",
    signature: "ss",
    values: [`org.freedesktop.${service}.${owner}`, name],
  };
}

/** The object of a unit: what is no letter or digit stands in its path in hex. */
export function unitObject(unit: string): string {
  return `/unit/${unit.replace(/[^a-zA-Z0-9]/g, (letter) => `_${letter.charCodeAt(0).toString(16)}`)}`;
}

/**
 * Makes calls, all at once, and waits for their answers, bounded in time. Never rejects: where there is no answer, it says why.
 *
 * @param path The socket of a bus; or of a peer that serves it without one, as a user manager does.
 */
export function callBus(path: string, calls: readonly BusCall[], timeoutMs: number): Promise<BusAnswer[]> {
  return new Promise((done) => {
    const answers: BusAnswer[] = [];
    const socket = connect(path);
    const finish = (why: string): void => {
      clearTimeout(timer);
      socket.destroy();
      done(calls.map((_, at) => answers[at] || { problem: `"${path}" ${why}` }));
    };
    const timer = setTimeout(() => finish(`did not answer within ${timeoutMs} ms`), timeoutMs);
    let received: Buffer = Buffer.alloc(0);
    let isAccepted = false;
    socket
      .on("error", (error) => finish(`cannot be connected to: ${reasonOf(error)}`))
      .on("close", () => finish("closed the connection"));
    socket.on("data", (chunk) => {
      received = Buffer.concat([received, chunk]);
      for (let end; !isAccepted && (end = received.indexOf("\r\n")) >= 0; received = received.subarray(end + 2)) {
        isAccepted = received.indexOf("OK ") === 0;
        if (!isAccepted && received.indexOf("DATA") !== 0) return finish("does not let us in");
        socket.write(
          isAccepted ? Buffer.concat([Buffer.from("BEGIN\r\n"), ...[hello, ...calls].map(encodeCall)]) : "DATA\r\n",
        );
      }
      try {
        for (
          let bytes;
          isAccepted && (bytes = lengthOf(received)) <= received.length;
          received = received.subarray(bytes)
        ) {
          const [at, answer] = decodeAnswer(received.subarray(0, bytes));
          answers[at] = answer;
        }
      } catch (error) {
        return finish(`sent what cannot be read: ${reasonOf(error)}`);
      }
      if (calls.every((_, at) => answers[at])) finish("");
    });
    socket.write("\0AUTH EXTERNAL\r\n"); // as whom the kernel says: in a user namespace our uid is not the one that the bus sees
  });
}

/** A bus must be greeted before all else, a peer refuses it: nobody waits for the answer. */
const hello = { service: "DBus", owner: "DBus", method: "Hello" };

/** Endianness, type, flags, version, length of the body, serial, fields by their codes. It is padded to a multiple of 8. */
const header = "yyyyuua(yv)";
const little = 0x6c;

/** Bytes of the message that a buffer begins with; infinite where too little of it is there to tell. */
function lengthOf(received: Buffer): number {
  if (received.length < 16) return Infinity;
  const [, , , , body, , fields] = createReader(received)("yyyyuuu") as number[];
  return 16 + padded(fields!, 8) + body!;
}

function padded(length: number, to: number): number {
  return Math.ceil(length / to) * to;
}

/** @param at Its serial, less 1: they count from 1. */
function encodeCall(
  { service, object = "", owner = `${service}.Manager`, method, signature = "", values = [] }: BusCall,
  at: number,
): Buffer {
  const body = encode(signature, values);
  const fields = [
    [1, ["o", `/org/freedesktop/${service}${object}`]],
    [2, ["s", `org.freedesktop.${owner}`]],
    [3, ["s", method]],
    [6, ["s", `org.freedesktop.${service}`]],
    [8, ["g", signature]],
  ];
  // an empty struct is nothing but padding
  return Buffer.from([...encode(`${header}()`, [little, 1, 0, 1, body.length, at + 1, fields]), ...body]);
}

/** @returns Which call it answers: the greeting is -1, and what answers none is NaN, as are the signals that systemd sends to each of its peers. */
function decodeAnswer(message: Buffer): [at: number, answer: BusAnswer] {
  const [, type, , , length, , pairs] = createReader(message)(header) as [
    number,
    number,
    number,
    number,
    number,
    number,
    [number, unknown][],
  ];
  const fields = new Map(pairs);
  const serial = Number(fields.get(5));
  const [value] = createReader(message, message.length - length)(((serial && fields.get(8)) || "") as string);
  const name = String(fields.get(4));
  // of this one the text differs from host to host, and systemd's tools say that
  return [
    serial - 2,
    type === 2 ? { value } : { problem: name.endsWith("AccessDenied") ? "Access denied" : String(value || name) },
  ];
}

/** The complete types that a signature is made of: of "sa(sv)" these are "s" and "a(sv)". */
function typesOf(signature: string): string[] {
  return signature.match(/a*(\(([^()]|\([^()]*\))*\)|[^()])/g) || [];
}

/** Values of a type begin at a multiple of this. */
function alignmentOf(type: string): number {
  return /^[ygv]/.test(type) ? 1 : /^[t(]/.test(type) ? 8 : 4;
}

function encode(signature: string, values: unknown[]): number[] {
  const bytes: number[] = [];
  const add = (...more: number[]): void => void bytes.push(...more);
  const align = (type: string): void => {
    while (bytes.length % alignmentOf(type) !== 0) add(0);
  };
  const octets = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 255);
  const put = (type: string, value: any): void => {
    align(type);
    const item = type.slice(1);
    switch (type[0]) {
      case "y":
        return add(value);
      case "b":
      case "u":
        return add(...octets(value));
      case "t":
        return add(...octets(value), ...octets(value / 2 ** 32));
      case "s":
      case "o":
        return add(...octets(Buffer.byteLength(value)), ...Buffer.from(value), 0);
      case "g":
        return add(value.length, ...Buffer.from(value), 0);
      case "v":
        return (put("g", value[0]), put(value[0], value[1]));
      case "(":
        return typesOf(item.slice(0, -1)).forEach((part, at) => put(part, value[at]));
    }
    const at = bytes.length; // an array begins with its length, which counts from the first item on
    add(...octets(0));
    align(item);
    const begin = bytes.length;
    for (const each of value) put(item, each);
    bytes.splice(at, 4, ...octets(bytes.length - begin));
  };
  typesOf(signature).forEach((type, at) => put(type, values[at]));
  return bytes;
}

/** @returns What reads the values of a signature, one after the other. It throws where there are none such. */
function createReader(message: Buffer, at = 0): (signature: string) => unknown[] {
  const view = new DataView(message.buffer, message.byteOffset, message.length);
  const isLittle = message[0] === little;
  const align = (type: string): void => void (at = padded(at, alignmentOf(type)));
  const u32 = (): number => view.getUint32((at += 4) - 4, isLittle);
  const text = (length: number): string => message.toString("utf8", at, (at += length + 1) - 1);
  const take = (type: string): unknown => {
    align(type);
    const item = type.slice(1);
    switch (type[0]) {
      case "y":
        return view.getUint8(at++);
      case "b":
        return u32() === 1;
      case "u":
        return u32();
      case "t":
        return Number(view.getBigUint64((at += 8) - 8, isLittle));
      case "s":
      case "o":
        return text(u32());
      case "g":
        return text(view.getUint8(at++));
      case "v":
        return take(take("g") as string);
      case "(":
        if (item === ")") break; // an array of them would have no end
        return typesOf(item.slice(0, -1)).map(take);
      case "a": {
        const length = u32();
        align(item);
        const items: unknown[] = [];
        for (const end = at + length; at < end; ) items.push(take(item));
        return items;
      }
    }
    throw new Error(`a value of type "${type}"`);
  };
  return (signature) => typesOf(signature).map(take);
}
