/** What the kernel says of the daemon, once a second; and whether that is flat. */

import { lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { statOf } from "../daemon.ts";

/** Of /proc/<pid>/stat, in clock ticks: 100 a second on every Linux that node runs on. */
const ticksPerSecond = 100;

/** One look at the daemon from outside. */
export interface Sample {
  /** Seconds since the soak began. */
  at: number;
  /** Which daemon: one that was killed has a successor. */
  pid: number;
  rssKiB: number;
  pssKiB: number;
  descriptors: number;
  threads: number;
  /** Its children, zombies too. */
  children: number;
  /** Seconds of processor time, its own and of the children that it reaped. */
  cpuSeconds: number;
  childCpuSeconds: number;
  /** In the run directory. */
  files: number;
  logBytes: number;
}

/** What the daemon says of itself when nothing is going on, after a collection. */
export interface Rest {
  heapBytes: number;
  bufferBytes: number;
  /** What keeps its event loop alive, counted by kind. */
  resources: string;
}

/** A look from both sides, with all work at rest. */
export interface Checkpoint extends Sample, Rest {
  operations: number;
}

/** Pids of all that run here. */
export function allPids(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

export function childrenOf(pid: number): number[] {
  return allPids().filter((one) => statOf(one)?.[1] === String(pid));
}

/** @returns Seconds: of the process itself, and of its children that have ended. */
export function cpuOf(pid: number | string): [own: number, children: number] {
  const [user, system, childUser, childSystem] = (statOf(pid) ?? []).slice(11, 15).map(Number);
  return [((user ?? 0) + (system ?? 0)) / ticksPerSecond, ((childUser ?? 0) + (childSystem ?? 0)) / ticksPerSecond];
}

/** @returns Undefined when the daemon ends meanwhile. */
export function sampleOf(pid: number, directory: string, at: number): Sample | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, "latin1");
    const field = (text: string, name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? NaN);
    const names = readdirSync(directory);
    const [cpuSeconds, childCpuSeconds] = cpuOf(pid);
    const sample = {
      at,
      pid,
      cpuSeconds,
      childCpuSeconds,
      rssKiB: field(status, "VmRSS"),
      threads: field(status, "Threads"),
      pssKiB: field(readFileSync(`/proc/${pid}/smaps_rollup`, "latin1"), "Pss"),
      descriptors: readdirSync(`/proc/${pid}/fd`).length,
      children: childrenOf(pid).length,
      files: names.length,
      logBytes: names
        .filter((name) => name.includes(".log"))
        .reduce((sum, name) => sum + lstatSync(join(directory, name)).size, 0),
    };
    return Number.isNaN(sample.rssKiB + sample.pssKiB + sample.threads) ? undefined : sample;
  } catch {
    return undefined;
  }
}

/** What the open descriptors are, counted by kind, to compare when there are too many of them. */
export function descriptorKinds(pid: number): string {
  try {
    return countByKind(
      readdirSync(`/proc/${pid}/fd`).map((name) => readlinkSync(`/proc/${pid}/fd/${name}`).replace(/:\[\d+\]$/, "")),
    );
  } catch {
    return "unknown";
  }
}

export function countByKind(names: string[]): string {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, count]) => `${count} ${name}`)
    .join(", ");
}

export function medianOf(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length === 0 ? NaN : (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

/** One thing that is to be flat. */
export interface Flatness {
  what: string;
  /** Medians of the middle and the last third of the checkpoints. */
  middle: number;
  last: number;
  /** What it may have grown by from the one to the other. */
  bound: number;
  /** For each operation between the two. */
  perOperation: number;
}

/** With fewer checkpoints in one daemon's life nothing is said of its memory. */
export const leastCheckpoints = 7;

/**
 * Compares the middle third of the checkpoints with the last one. The first is warming up: code that is compiled late, caches, arenas of malloc.
 *
 * A leak grows with the operations, slack does not: so the bounds are the slack that was measured without a leak, four times over. Between the
 * two thirds of a soak the heap grew by 90 KiB at most (code and type feedback), the buffers by nothing, the resident memory by 10 MiB (what
 * malloc has free and keeps: up to 220 MiB, where 8 are in use; without the tide of the warm-up it grew by 39 MiB once).
 */
export function judgeFlatness(checkpoints: Checkpoint[]): Flatness[] {
  if (checkpoints.length < leastCheckpoints) return [];
  const third = Math.floor(checkpoints.length / 3);
  const middle = checkpoints.slice(-2 * third, -third);
  const last = checkpoints.slice(-third);
  const operations = medianOf(last.map((one) => one.operations)) - medianOf(middle.map((one) => one.operations));
  const rows: [string, (one: Checkpoint) => number, number][] = [
    ["heap", ({ heapBytes }) => heapBytes, heapSlack],
    ["buffers", ({ bufferBytes }) => bufferBytes, bufferSlack],
    ["resident", ({ rssKiB }) => rssKiB * 1024, residentSlack],
  ];
  return rows.map(([what, of, bound]) => {
    const [before, after] = [medianOf(middle.map(of)), medianOf(last.map(of))];
    return { what, middle: before, last: after, bound, perOperation: (after - before) / Math.max(operations, 1) };
  });
}

const heapSlack = 400 << 10;
const bufferSlack = 256 << 10;
const residentSlack = 40 << 20;
