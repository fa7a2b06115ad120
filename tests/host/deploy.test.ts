// time limit: 500 s
/** The examples that put holdfast on hosts, run as they stand in the repository, against a booted host. */

import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type * as Api from "../../deploy.ts";
import type { Outcome } from "../daemon.ts";
import { builtFile, outcomeOf, rounds } from "../daemon.ts";
import type { Host } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

requireHosts(10);

/** Runs a program of this machine in the host's network, where 127.0.0.1 is the host. */
function within(
  host: Host,
  program: string,
  args: string[],
  { env = {} as NodeJS.ProcessEnv, stdin = "" } = {},
): Promise<Outcome> {
  return outcomeOf(
    spawn("nsenter", ["-t", String(host.init), "-n", program, ...args], { env: { ...process.env, ...env } }),
    stdin,
    120_000,
  );
}

const deploy = (host: Host, user: string, env: NodeJS.ProcessEnv = {}): Promise<Outcome> =>
  within(host, resolve("examples/deploy.sh"), [`${user}@127.0.0.1`, ...host.sshArguments], { env });

/** A build of another version: the hash differs, and so do the bytes. */
function otherBuild(host: Host): string {
  const path = join(host.directory, "other.js");
  const text = readFileSync(builtFile, "utf8");
  const hash = /sha256: "([0-9a-f]{64})"/.exec(text)![1]!;
  writeFileSync(path, text.replace(hash, "f".repeat(64)).replace('version: "', 'version: "99.'));
  return path;
}

const script = suite("examples/deploy.sh");

script(
  "copies, starts, shakes hands and says so in one JSON line; with bash, fish and tcsh as the login shell, and a talkative one",
  () =>
    withHost(
      { users: ["bash", "fish", "tcsh", "loud"], killUserProcesses: true, logind: ["UserStopDelaySec=300"] },
      async (host) => {
        for (const shell of ["fish", "tcsh"]) {
          if (!existsSync(`/usr/bin/${shell}`)) throw new Error(`The host needs the package ${shell}`);
          assert.is((await host.root(`usermod -s /usr/bin/${shell} ${shell}`)).code, 0);
        }
        assert.is(
          (
            await host.root(
              "echo 'echo Welcome to the host' | tee /home/loud/.bashrc >/home/fish/.hushlogin; chown loud /home/loud/.bashrc",
            )
          ).code,
          0,
        );
        await Promise.all(
          ["bash", "fish", "tcsh", "loud"].map(async (user) => {
            const first = await deploy(host, user);
            assert.is(first.code, 0, `${user}: ${first.stderr}`);
            assert.match(first.stdout.toString(), /^\{.*\}\n$/);
            const started = JSON.parse(first.stdout.toString());
            assert.equal(
              [started.host, started.copied, started.how, started.lifetime.survivesLogout],
              [`${user}@127.0.0.1`, true, "started", "until"],
              user,
            );
            assert.is(
              readFileSync(host.file(`/home/${user}/.holdfast/holdfast.js`), "utf8"),
              readFileSync(builtFile, "utf8"),
            );

            // again: nothing is copied, nothing started
            const again = JSON.parse((await deploy(host, user)).stdout.toString());
            assert.equal(
              [again.copied, again.how, again.instance, again.pid],
              [false, "joined", started.instance, started.pid],
              user,
            );
          }),
        );

        // a new version: the idle daemon makes room
        const env = { HOLDFAST_FILE: otherBuild(host) };
        const before = JSON.parse((await deploy(host, "fish")).stdout.toString());
        const updated = JSON.parse((await deploy(host, "fish", env)).stdout.toString());
        assert.equal(
          [updated.copied, updated.how, /^99\./.test(updated.version), updated.instance === before.instance],
          [true, "started", true, false],
        );

        // and with work to do it stays
        const started = await host.ssh(
          "tcsh",
          `sh .holdfast/holdfast.js --call process.spawn '{"id":"work","command":"/bin/sh","args":["-c","echo up; exec >&- 2>&-; sleep 1000"]}' >& /dev/null & sh -c "until sh .holdfast/holdfast.js --call process.list | grep -q sleep; do sleep 0.2; done"`,
        );
        assert.is(started.code, 0, started.stderr);
        const kept = JSON.parse((await deploy(host, "tcsh", env)).stdout.toString());
        assert.equal([kept.copied, kept.how, /^99\./.test(kept.version)], [true, "joined", false]);
        assert.is(host.processes("sleep 1000").filter(({ uid }) => uid === host.uid("tcsh")).length > 0, true);
      },
    ),
);

const many = rounds(6, 3);

script("deploys to several at once with xargs, and several times at once to one", () => {
  const users = Array.from({ length: many }, (_, at) => `u${at}`);
  return withHost({ users: [...users, "one"] }, async (host) => {
    const deployAll = (hosts: string[]): Promise<Outcome> =>
      within(host, "xargs", ["-P", "6", "-I{}", resolve("examples/deploy.sh"), "{}", ...host.sshArguments], {
        stdin: hosts.map((user) => `${user}@127.0.0.1\n`).join(""),
      });
    const [all, same] = [await deployAll(users), await deployAll(Array(many).fill("one"))];
    for (const { code, stderr } of [all, same]) assert.is(code, 0, stderr);
    const [started, joined] = [all, same].map(({ stdout }) =>
      stdout
        .toString()
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line)),
    );
    assert.equal(
      started!.map((line) => line.host).sort(),
      users.map((user) => `${user}@127.0.0.1`),
    );
    assert.ok(started!.every(({ copied, how }) => copied && how === "started"));
    assert.is(new Set(joined!.map(({ pid }) => pid)).size, 1, "one daemon");
    assert.is(host.processes("--launched").filter(({ uid }) => uid === host.uid("one")).length, 1);
    assert.is(joined!.filter(({ copied }) => copied).length, 1, "one copy");
    assert.equal(readdirSync(host.file("/home/one/.holdfast")), ["holdfast.js"]);
  });
});

script("says what is wrong: no such host, no runtime on the host, no built file", () =>
  withHost({}, async (host) => {
    const nobody = await deploy(host, "nobody-here");
    assert.is(nobody.code, 255);
    assert.match(
      nobody.stderr,
      /Permission denied[\s\S]*\ndeploy\.sh: nobody-here@127\.0\.0\.1: --serve ended with exit code 255\n$/,
    );
    const none = await deploy(host, "dev", { HOLDFAST_FILE: "/etc/hostname" });
    assert.is(none.code, 65);
    assert.is(none.stdout.length, 0);
    await host.root(
      "mv /usr/bin/node /usr/bin/node-away 2>/dev/null; umount /usr/local/bin/node 2>/dev/null && rm /usr/local/bin/node; true",
    );
    const bare = await deploy(host, "dev");
    assert.is(bare.code, 127, bare.stderr);
    assert.match(bare.stderr, /Cannot run: there is no node, nodejs, bun or deno, neither on the PATH/);
    assert.is((await within(host, resolve("examples/deploy.sh"), ["a'b"])).code, 64);
  }),
);
script.run();

/** The ssh command of the library, as a person would type it; within the host's network. */
const sshTo = (host: Host, user: string): string[] => host.loginCommand(user);

const embedded = suite("the library");

embedded("deploys over ssh to several users at once, and says which failed and why", () => {
  const users = Array.from({ length: many - 1 }, (_, at) => `u${at}`);
  return withHost({ users }, async (host) => {
    const { deploy, HoldfastError } = createRequire("/")(builtFile) as typeof Api;
    const results = await Promise.allSettled(
      [...users, "nobody-here"].map((user) => deploy({ ssh: sshTo(host, user), program: builtFile })),
    );
    const failed = results.pop() as PromiseRejectedResult;
    assert.ok(failed.reason instanceof HoldfastError);
    assert.equal([failed.reason.reason, failed.reason.exitCode], ["login-refused", 255], failed.reason.message);
    assert.match(failed.reason.message, /nobody-here@127\.0\.0\.1": it ended with exit code 255: .*Permission denied/);
    for (const result of results) {
      assert.is(result.status, "fulfilled", String((result as PromiseRejectedResult).reason));
      const there = (result as PromiseFulfilledResult<Api.Deployment>).value;
      assert.equal([there.copied, there.served.how], [true, "started"]);
      await there.close();
    }
    const again = await deploy({ ssh: sshTo(host, "u0"), program: builtFile });
    assert.equal([again.copied, again.served.how], [false, "joined"]);
    assert.is((await again.run({ command: "id", args: ["-un"] })).stdout, "u0\n");
    await again.close();
  });
});

embedded("goes on where it was when the network is gone for a while, and with it the heartbeat's answers", () =>
  withHost({ users: ["dev+linger"] }, async (host) => {
    const { deploy } = createRequire("/")(builtFile) as typeof Api;
    const there = await deploy({
      ssh: sshTo(host, "dev"),
      program: builtFile,
      reconnect: { minDelayMs: 100, maxDelayMs: 1000 },
      heartbeatMs: 1000,
    });
    const events: string[] = [];
    there.on("lost", ({ reason }) => events.push(reason)).on("reconnected", () => events.push("again"));
    const script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.5; done; exit 4";
    const child = await there.spawn({ command: "/bin/sh", args: ["-c", script] });
    let text = "";
    const reading = (async () => {
      for await (const { data } of child.output) text += Buffer.from(data).toString();
    })();
    await until(() => text.includes("2"), "the first lines");
    await host.inside(["ip", "link", "set", "lo", "down"]);
    await until(() => events.includes("not-answering"), "the loss is told", 30_000);
    await host.inside(["ip", "link", "set", "lo", "up"]);
    await reading;
    assert.is(text, "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
    assert.equal(await child.exit, { exitCode: 4 });
    assert.is(events.at(-1), "again");
    await there.close();
  }),
);

embedded("finds a node where an ssh command has none in PATH, and says where there is none at all", () =>
  withHost({ users: ["dev", "bare"] }, async (host) => {
    const { deploy } = createRequire("/")(builtFile) as typeof Api;
    const node = (await host.root("command -v node")).stdout.trim();
    await host.root(
      `d=/home/dev/.nvm/versions/node/v22.0.0/bin; mkdir -p $d && cp -L ${node} $d/node && chmod -R a+rX /home/dev/.nvm`,
    );
    await host.root(`mount --bind /dev/null ${node}`);
    const there = await deploy({ ssh: sshTo(host, "dev"), program: builtFile });
    assert.is((await there.run({ command: "echo", args: ["found"] })).stdout, "found\n");
    await there.close();
    const error = await deploy({ ssh: sshTo(host, "bare"), program: builtFile }).catch((reason) => reason);
    assert.equal([error.reason, error.exitCode], ["no-runtime", 127], error.message);
    assert.match(error.hint, /put a node/);
  }),
);

embedded("starts a process over ssh, loses the connection, and takes the process up again in the next session", () =>
  withHost({ users: ["dev+linger"], killUserProcesses: true }, async (host) => {
    const { connect } = createRequire("/")(builtFile) as typeof Api;
    const { tokenFile, instance } = JSON.parse((await deploy(host, "dev")).stdout.toString());
    const token = readFileSync(host.file(tokenFile), "utf8").trim();
    const command = [
      "nsenter",
      "-t",
      String(host.init),
      "-n",
      "ssh",
      ...host.sshArguments,
      "dev@127.0.0.1",
      "sh .holdfast/holdfast.js --bridge",
    ];
    const first = await connect({ command, token });
    assert.is(first.instanceId, instance);
    const child = await first.spawn({ id: "work", command: "/bin/sh", args: ["-c", "read x; echo got $x; exit 4"] });
    first.close();
    await host.sleepUntilLoggedOut("dev");
    const second = await connect({ command, token });
    let text = "";
    const again = await second.reattach("work", {
      fromSeq: child.lastSeq,
      onOutput: ({ data }) => (text += Buffer.from(data).toString()),
    });
    await again.write("it\n");
    assert.equal(await again.exit, { exitCode: 4 });
    assert.is(text, "got it\n");
    second.close();
  }),
);
embedded.run();

const units = suite("examples/holdfast.service and cloud-init.yaml");

units("a unit that fails is started again, and takes its work up", () =>
  withHost({ users: ["dev+linger"] }, async (host) => {
    const run = async (command: string): Promise<string> => {
      const { code, stdout, stderr } = await host.ssh("dev", `export XDG_RUNTIME_DIR=/run/user/$(id -u); ${command}`);
      assert.is(code, 0, `${command}: ${stdout}${stderr}`);
      return stdout.trim();
    };
    await run("mkdir -p .holdfast .config/systemd/user");
    await host.copy("dev", builtFile, ".holdfast/holdfast.js");
    await host.copy("dev", "examples/holdfast.service", ".config/systemd/user/holdfast.service");
    await run(
      "chmod 0755 .holdfast/holdfast.js && systemctl --user daemon-reload && systemctl --user enable --now holdfast",
    );
    const answers = async (): Promise<boolean> =>
      (await host.ssh("dev", ".holdfast/holdfast.js --call server.ping")).stdout.includes("pong");
    await until(answers, "it answers");
    const daemon = Number(await run("systemctl --user show holdfast -p MainPID --value"));
    const { connect } = createRequire("/")(builtFile) as typeof Api;
    const command = [...sshTo(host, "dev"), ".holdfast/holdfast.js --bridge --as-owner"];
    const there = await connect({ command, reconnect: { minDelayMs: 200 } });
    const child = await there.spawn({ command: "/bin/sh", args: ["-c", "echo one; read x; echo $x; exit 6"] });
    const output = child.output[Symbol.asyncIterator]();
    assert.is(Buffer.from((await output.next()).value!.data).toString(), "one\n");
    await run(`kill -9 ${daemon}`);
    await until(async () => Number(await run("systemctl --user show holdfast -p MainPID --value")) > 0, "it is back");
    await child.write("two\n");
    assert.is(Buffer.from((await output.next()).value!.data).toString(), "two\n");
    assert.equal(await child.exit, { exitCode: 6 });
    await there.close();
    await run("systemctl --user stop holdfast");
    assert.is(host.processes("--lifetime foreground").length, 0);
  }),
);

units("cloud-init.yaml gives a user a daemon at boot", () =>
  withHost({ users: ["dev"] }, async (host) => {
    const read = `import json, yaml; print(json.dumps(yaml.safe_load(open("examples/cloud-init.yaml"))))`;
    const parsed = await outcomeOf(spawn("python3", ["-c", read]), "", 20_000);
    const data = JSON.parse(parsed.stdout.toString());
    for (const { path, content } of data.write_files) writeFileSync(host.file(path), content);
    const hash = readFileSync("dist/holdfast.js.sha256", "utf8").split(" ")[0]!;
    for (const line of data.runcmd as string[]) {
      // there is no network: what curl would fetch is put there
      const isFetch = line.startsWith("curl ");
      if (isFetch) writeFileSync(host.file("/usr/local/bin/holdfast"), readFileSync(builtFile));
      const { code, stderr } = await host.root(isFetch ? "true" : line.replace("0".repeat(64), hash));
      assert.is(code, 0, `${line}: ${stderr}`);
    }
    await until(
      async () => (await host.ssh("dev", "holdfast --call server.ping")).stdout.includes("pong"),
      "dev has a daemon",
    );
    const status = JSON.parse((await host.ssh("dev", "holdfast --status --json")).stdout);
    assert.is(status.lifetime.survivesLogout, "yes", status.lifetime.words);
  }),
);
units.run();

const playbook = suite("examples/ansible.yml");

playbook("copies and starts, and reports changed and unchanged truthfully", () =>
  withHost({}, async (host) => {
    const play = (more: string[] = []): Promise<Outcome> =>
      within(
        host,
        "ansible-playbook",
        [
          "-i",
          "127.0.0.1,",
          "-u",
          "dev",
          "--private-key",
          join(host.directory, "key"),
          "--ssh-common-args",
          host.sshArguments.slice(4).join(" "),
          ...more,
          resolve("examples/ansible.yml"),
        ],
        {
          env: {
            ANSIBLE_SSH_ARGS: "-o ControlMaster=no",
            ANSIBLE_PIPELINING: "1", // a connection for each task, not four
            ANSIBLE_LOCAL_TEMP: join(host.directory, "ansible"),
            ANSIBLE_NOCOLOR: "1",
            ANSIBLE_PYTHON_INTERPRETER: "/usr/bin/python3",
            LC_ALL: "C.UTF-8",
          },
        },
      );
    const recap = ({ code, stdout, stderr }: Outcome): string => {
      assert.is(code, 0, `${stdout}${stderr}`);
      return /ok=\d+ +changed=\d+ .*failed=\d+/.exec(stdout.toString())![0].replace(/ +/g, " ");
    };
    assert.match(recap(await play()), /^ok=6 changed=3 .*failed=0/); // the directory, the file, the daemon
    const [daemon] = host.processes("--launched");
    assert.match(recap(await play()), /^ok=5 changed=0 .*failed=0/);
    assert.is(host.processes("--launched")[0]!.pid, daemon!.pid);
    assert.match(recap(await play(["-e", `holdfast_file=${otherBuild(host)}`])), /^ok=6 changed=3 .*failed=0/); // the file, the stop, the daemon
    assert.is(host.processes("--launched").length, 1);
    assert.ok(host.processes("--launched")[0]!.pid !== daemon!.pid);
  }),
);
playbook.run();
