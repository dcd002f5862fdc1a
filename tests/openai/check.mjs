// Checks with the OpenAI client for Node. Needs BASE_URL, MODEL, SERVER_LOG and NODE_MODULES; prints a line for each check.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const OpenAI = createRequire(`${process.env.NODE_MODULES}/`)("openai");
const model = process.env.MODEL;
const messages = [{ role: "user", content: "Tell me something about the sea." }];
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0, timeout: 120_000 });

async function listsTheModel() {
  const ids = [];
  for await (const entry of client.models.list()) ids.push(entry.id);
  assert.ok(ids.includes(model), `${ids}`);
}

async function chats() {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 12, ignore_eos: true });
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 12);
}

async function completes() {
  const answer = await client.completions.create({ model, prompt: "A river is", max_tokens: 12 });
  assert.ok(answer.choices[0].text.trim());
}

async function streamsAChat() {
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 12, stream: true, ignore_eos: true });
  const choices = [];
  for await (const chunk of stream) choices.push(...chunk.choices);
  assert.ok(choices.filter((choice) => choice.delta.content).length > 3, JSON.stringify(choices));
  assert.equal(choices.at(-1).finish_reason, "length");
}

async function streamsACompletion() {
  const stream = await client.completions.create({ model, prompt: "A river is", max_tokens: 12, stream: true });
  const pieces = [];
  for await (const chunk of stream) pieces.push(...chunk.choices.map((choice) => choice.text));
  assert.ok(pieces.length > 3 && pieces.join("").trim(), JSON.stringify(pieces));
}

async function cancellingFreesTheSlot() {
  const before = cancelled();
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 3500, stream: true, ignore_eos: true });
  let seen = 0;
  for await (const _ of stream) if (++seen === 3) stream.controller.abort();
  const deadline = performance.now() + 30_000;
  while (cancelled() === before) {
    assert.ok(performance.now() < deadline, "llama-server did not end the cancelled request within 30 s");
    await sleep(50);
  }
  await chats();
}

// How many requests llama-server ended because their caller was gone; one that ran to its end is not among them.
function cancelled() {
  return readFileSync(process.env.SERVER_LOG, "utf8").split("cancel task").length - 1;
}

async function unknownModelIsANotFoundError() {
  await assert.rejects(client.chat.completions.create({ model: "no-such-model", messages }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError, `${error}`);
    assert.equal(error.status, 404);
    assert.equal(error.code, "model_not_found");
    assert.equal(error.param, "model");
    assert.match(error.message, /no-such-model/);
    return true;
  });
}

const checks = [
  listsTheModel,
  chats,
  completes,
  streamsAChat,
  streamsACompletion,
  cancellingFreesTheSlot,
  unknownModelIsANotFoundError,
];
let failed = 0;
for (const check of checks) {
  const name = check.name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  try {
    await check();
    console.log(`ok   node: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL node: ${name}: ${`${error.name}: ${error.message}`.replaceAll("\n", " ").slice(0, 400)}`);
  }
}
process.exit(failed ? 1 : 0);
