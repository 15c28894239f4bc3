// Asks the stand-ins for fal and Replicate with the providers' official clients, and prints one JSON line for each case.
//
// Reads FAL_PROXY (where the stand-in for fal takes forwarded calls), REPLICATE_API (the base address of the other one) and
// PICTURE (a PNG). Whether what came back is right is judged by test_provider_clients.py.

import fs from "node:fs";
import { createFalClient, ApiError as FalError, ValidationError } from "@fal-ai/client";
import Replicate from "replicate";

const { FAL_PROXY, REPLICATE_API, PICTURE } = process.env;
const VERSION = "dfad41707589d68ecdccd1dfa600d55a208f9310748e44bfe35b4a6291453d5e";
const CLARITY = "fal-ai/clarity-upscaler";

const fal = createFalClient({ credentials: "id:secret", proxyUrl: { url: FAL_PROXY, when: "always" } });
const replicate = new Replicate({ auth: "r8_simulated", baseUrl: REPLICATE_API });
const picture = () => new Blob([fs.readFileSync(PICTURE)], { type: "image/png" });
const uri = () => `data:image/png;base64,${fs.readFileSync(PICTURE).toString("base64")}`;

async function content(url) {
  const answer = await fetch(url);
  return { status: answer.status, bytes: Buffer.from(await answer.arrayBuffer()).toString("base64") };
}

async function refused(run) {
  try {
    await run();
  } catch (error) {
    const kind = error instanceof ValidationError ? "ValidationError" : error instanceof FalError ? "FalError" : error.name;
    return { error: kind, status: error.status ?? error.response?.status, message: error.message, body: error.body };
  }
  return { error: null };
}

const cases = {
  async fal_subscribe() {
    const seen = [];
    const { data, requestId } = await fal.subscribe(CLARITY, {
      input: { image_url: picture(), upscale_factor: 3 },
      pollInterval: 20,
      onQueueUpdate: (update) => seen.push(update.status),
    });
    return { ...(await content(data.image.url)), width: data.image.width, requestId, seen };
  },
  async fal_queue() {
    const { request_id: requestId } = await fal.queue.submit(CLARITY, { input: { image_url: uri() } });
    await fal.queue.subscribeToStatus(CLARITY, { requestId, pollInterval: 20 });
    const { data } = await fal.queue.result(CLARITY, { requestId });
    return content(data.image.url);
  },
  fal_refused: () => refused(() => fal.run(CLARITY, { input: { image_url: uri(), creativity: 7 } })),
  async replicate_run() {
    const output = await replicate.run(`philz1337x/clarity-upscaler:${VERSION}`, { input: { image: picture(), scale_factor: 3 } });
    return content(String(output[0]));
  },
  async replicate_run_official() {
    const output = await replicate.run("nightmareai/real-esrgan", { input: { image: uri(), scale: 2 }, wait: { mode: "poll", interval: 20 } });
    return content(String(output));
  },
  async replicate_wait() {
    const made = await replicate.predictions.create({ version: VERSION, input: { image: uri() } });
    const ended = await replicate.wait(made, { interval: 20 });
    const listed = (await replicate.predictions.list()).results[0];
    return { begun: made.status, ended: ended.status, metrics: ended.metrics, newest: listed.id === made.id };
  },
  async replicate_cancel() {
    const made = await replicate.predictions.create({ version: VERSION, input: { image: uri() } });
    return { status: (await replicate.predictions.cancel(made.id)).status };
  },
  async replicate_files() {
    const stored = await replicate.files.create(picture(), { of: "a test" });
    const listed = (await replicate.files.list()).results.map((file) => file.id);
    const deleted = await replicate.files.delete(stored.id);
    return { metadata: stored.metadata, type: stored.content_type, listed: listed.includes(stored.id), deleted };
  },
  replicate_refused: () =>
    refused(() => replicate.predictions.create({ version: VERSION, input: { image: uri(), seed: null } })),
  async replicate_secret() {
    return { secret: (await replicate.webhooks.default.secret.get()).key };
  },
};

for (const [name, run] of Object.entries(cases)) console.log(JSON.stringify({ case: name, ...(await run()) }));
