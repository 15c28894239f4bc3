// Edits pictures with the official client, as a Node program would, and prints one JSON line for each case.
//
// Reads OPENAI_BASE_URL and OPENAI_API_KEY (the client does), PICTURE (a PNG), WORDS (not a picture), LARGE (over the limit)
// and OUT, a folder for what comes back. Whether it came back right is judged by test_node_client.py.

import fs from "node:fs";
import path from "node:path";
import OpenAI, { APIError, AuthenticationError, BadRequestError, NotFoundError, toFile } from "openai";

const { PICTURE, WORDS, LARGE, OUT } = process.env;
const client = new OpenAI();
const common = { model: "detail-upscaler", prompt: "" };
const open = () => fs.createReadStream(PICTURE);
const bytes = () => fs.readFileSync(PICTURE);
const edit = (members) => client.images.edit({ ...common, image: open(), ...members });

const edits = {
  stream_of_a_file: () => edit({}),
  bytes_without_a_name: async () => edit({ image: await toFile(bytes()) }),
  bytes_with_name_and_type: async () => edit({ image: await toFile(bytes(), "a.png", { type: "image/png" }) }),
  list_of_one: () => edit({ image: [open()] }),
  three_results: () => edit({ n: 3 }),
  as_url: () => edit({ response_format: "url" }),
  as_b64_json: () => edit({ response_format: "b64_json" }),
  exact_size: () => edit({ size: "160x160" }),
  scale_factor: () => edit({ scale_factor: 3 }),
  ...Object.fromEntries(
    ["png", "jpeg", "webp", "gif", "avif"].map((form) => [`format_${form}`, () => edit({ output_format: form })]),
  ),
};

const failures = {
  list_of_several: async () => edit({ image: [open(), await toFile(bytes(), "b.png")] }),
  not_a_picture: () => edit({ image: fs.createReadStream(WORDS) }),
  wrong_type: () => edit({ n: "abc" }),
  wrong_size: () => edit({ size: "12by12" }),
  unknown_model: () => edit({ model: "detail-upscalr" }),
  unknown_model_looked_up: () => client.models.retrieve("no/such-model"),
  wrong_key: () => new OpenAI({ apiKey: "sk-wrong" }).images.edit({ ...common, image: open() }),
  too_large: async () => edit({ image: await toFile(fs.readFileSync(LARGE), "large.png") }),
};

const lookups = {
  models_list: async () => (await client.models.list()).data,
  models_retrieve: () => client.models.retrieve("detail-upscaler"),
};

async function save(name, entry, index) {
  const content = entry.url ? Buffer.from(await (await fetch(entry.url)).arrayBuffer()) : Buffer.from(entry.b64_json, "base64");
  const file = path.join(OUT, `${name}-${index}`);
  fs.writeFileSync(file, content);
  return { file, kind: Object.keys(entry).sort().join(" ") };
}

async function edited(name, run) {
  const answer = await run();
  const pictures = await Promise.all(answer.data.map((entry, index) => save(name, entry, index)));
  return { pictures, metadata: answer.metadata, request_id: answer._request_id };
}

async function refused(run) {
  try {
    await run();
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    const classes = { AuthenticationError, BadRequestError, NotFoundError };
    const kind = Object.keys(classes).find((name) => error instanceof classes[name]) ?? "APIError";
    const { status, code, param, type, requestID, message } = error;
    return { error: kind, status, code, param, type, requestID, message };
  }
  return { error: null };
}

const print = (name, result) => console.log(JSON.stringify({ case: name, ...result }));

for (const [name, run] of Object.entries(edits)) print(name, await edited(name, run));
for (const [name, run] of Object.entries(failures)) print(name, await refused(run));
for (const [name, run] of Object.entries(lookups)) print(name, { result: await run() });
