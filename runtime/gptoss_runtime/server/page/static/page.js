// Connects the page's parts: settings, the conversation, one request at a time.

import { Answer, ApiError, complete, get } from "./api.js";
import { generateCode } from "./code.js";
import { AnswerView, errorMessage, userMessage } from "./view.js";

const $ = (id) => document.getElementById(id);
const KEY = "gptoss-key";
const EXAMPLE = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

let messages = []; // the conversation, in the API's format
let running = null; // the AbortController of the current request
let waiting = null; // the AnswerView whose tool calls wait for results
let conversation = 0; // a counter: results that belong to an earlier conversation are dropped
let language = "curl";

// settings

function readTools() {
  const text = $("tools").value.trim();
  $("tools-problem").textContent = "";
  if (!text) return [];
  try {
    const parsed = JSON.parse(text);
    return Array.isArray(parsed) ? parsed : [parsed];
  } catch (error) {
    $("tools-problem").textContent = `This is not JSON: ${error.message}`;
    return null;
  }
}

function readSettings() {
  const maxTokens = $("max-tokens").valueAsNumber;
  const given = readTools();
  return {
    ...($("model").value && { model: $("model").value }),
    reasoning_effort: document.querySelector("input[name=effort]:checked").value,
    temperature: $("temperature").valueAsNumber,
    ...(maxTokens >= 1 && { max_completion_tokens: Math.floor(maxTokens) }),
    ...(given?.length && { tools: given }),
  };
}

function composeMessages(next) {
  const instructions = $("instructions").value.trim();
  const first = instructions ? [{ role: "system", content: instructions }] : [];
  return [...first, ...messages, ...(next ? [{ role: "user", content: next }] : [])];
}

function showCode() {
  $("temperature-shown").value = $("temperature").value;
  const written = composeMessages($("prompt").value.trim());
  const sent = written.some((message) => message.role === "user") ? written : [...written, { role: "user", content: "Hello" }];
  $("code").textContent = generateCode(language, { ...readSettings(), messages: sent }, location.origin);
}

// the server

async function loadModels() {
  const key = $("key").value;
  try {
    const { data = [] } = await get("/v1/models", key);
    const chosen = $("model").value;
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
    setStatus(data.length ? "" : "The server has no models.");
    $("model").disabled = data.length < 2;
  } catch (error) {
    if (error.status === 401) {
      $("key-part").open = true;
      $("key").focus();
    }
    setStatus(error.message);
  }
  await showDevice();
  showCode();
}

async function showDevice() {
  try {
    const { models = [] } = await get("/openai/status", $("key").value);
    const loaded = models.find(({ id }) => id === $("model").value);
    const context = loaded?.context_length && `${loaded.context_length.toLocaleString("en")}-token context`;
    $("device").textContent = loaded ? [loaded.device, loaded.provider, context].filter((text) => text != null && text !== "").join(" · ") : "";
  } catch {
    $("device").textContent = "";
  }
}

function setStatus(text) {
  $("status").textContent = text;
}

// the conversation

function append(element) {
  $("empty").hidden = true;
  $("log").append(element);
  scrollDown(true);
}

function scrollDown(always) {
  const log = $("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
}

async function send() {
  const text = $("prompt").value;
  if (running || !text.trim()) return;
  if (waiting) {
    setStatus("The model waits for its tools: return their results or start a new conversation.");
    waiting.focus();
    return;
  }
  if (readTools() === null) {
    $("tools").closest("details").open = true;
    $("tools").focus();
    return;
  }
  const before = messages.length;
  const shown = userMessage(text);
  messages.push({ role: "user", content: text });
  $("prompt").value = "";
  append(shown);
  const turn = ++conversation;
  try {
    await runTurn(turn);
  } catch (error) {
    if (turn !== conversation) return;
    messages.length = before; // a failed turn is not part of the conversation
    shown.classList.add("failed");
    $("prompt").value ||= text;
    append(errorMessage(error));
    if (error.status === 401) $("key-part").open = true;
    setStatus("");
  } finally {
    showCode();
    await showDevice();
  }
}

/** Requests answers until the model calls no more tools; the user types the results of calls. */
async function runTurn(turn) {
  for (;;) {
    const { answer, view, stopped } = await requestAnswer();
    if (turn !== conversation) return;
    if (!answer.empty && !(stopped && answer.calls.length)) messages.push(answer.message());
    if (stopped || answer.finish !== "tool_calls" || !answer.calls.length) {
      $("prompt").focus();
      return;
    }
    setStatus("The model waits for its tools.");
    waiting = view;
    const results = await view.askForResults();
    if (turn !== conversation) return;
    waiting = null;
    answer.calls.forEach((call, index) => {
      messages.push({ role: "tool", tool_call_id: call.id, content: results[index] });
    });
  }
}

/** Sends one request and displays its stream. */
async function requestAnswer() {
  const collected = new Answer();
  const view = new AnswerView(collected);
  const control = (running = new AbortController());
  const started = performance.now();
  let first = null;
  let stopped = false;
  append(view.element);
  setBusy(true);
  setStatus("Answering …");
  const body = { ...readSettings(), messages: composeMessages(), stream: true, stream_options: { include_usage: true } };
  try {
    for await (const chunk of complete(body, $("key").value, control.signal)) {
      collected.add(chunk);
      if (collected.tokens) first ??= performance.now();
      view.update();
      scrollDown(false);
    }
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) {
      if (collected.empty) view.element.remove();
      else view.end("The answer was interrupted.", "");
      throw error instanceof ApiError ? error : new ApiError(String(error.message ?? error));
    }
  } finally {
    running = null;
    setBusy(false);
  }
  const note = stopped ? "Stopped." : collected.finish === "length" ? "Truncated: the token limit was reached." : "";
  view.end(note, formatFigures(collected, started, first));
  setStatus(stopped ? "Stopped." : "The answer is complete.");
  scrollDown(false);
  return { answer: collected, view, stopped };
}

function formatFigures({ usage, timings, tokens, model }, started, first) {
  const now = performance.now();
  const count = usage?.completion_tokens ?? tokens;
  const rate = timings?.predicted_per_second ?? (first && tokens > 1 ? (tokens - 1) / ((now - first) / 1000) : 0);
  const wait = timings?.time_to_first_token_ms ?? (first ? first - started : null);
  return [
    `${count} token${count === 1 ? "" : "s"}`,
    rate ? `${rate.toFixed(1)} tokens/s` : null,
    wait === null ? null : `first token after ${(wait / 1000).toFixed(2)} s`,
    model,
  ].filter(Boolean).join(" · ");
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
}

function stop() {
  running?.abort();
}

function startConversation() {
  stop();
  waiting = null;
  conversation += 1;
  messages = [];
  for (const article of $("log").querySelectorAll("article")) article.remove();
  $("empty").hidden = false;
  setStatus("");
  showCode();
  $("prompt").focus();
}

// events

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) {
    event.preventDefault();
    stop();
    $("prompt").focus();
  }
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", startConversation);
$("toggle").addEventListener("click", () => {
  const hidden = $("settings").toggleAttribute("hidden");
  $("toggle").setAttribute("aria-expanded", String(!hidden));
});
$("example").addEventListener("click", () => {
  $("tools").value = JSON.stringify(EXAMPLE, null, 2);
  showCode();
});
$("model").addEventListener("change", showDevice);
$("key").addEventListener("change", () => {
  sessionStorage.setItem(KEY, $("key").value);
  loadModels();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    setStatus("Copied.");
  } catch {
    getSelection().selectAllChildren($("code"));
    setStatus("Selected: copy it with the keyboard.");
  }
});
const tabs = [...document.querySelectorAll("[role=tab]")];
for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) selectTab(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]).focus();
  });
}

function selectTab(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  language = tab.dataset.language;
  $("code").setAttribute("aria-labelledby", tab.id);
  showCode();
  return tab;
}

for (const id of ["settings", "prompt", "model"]) $(id).addEventListener("input", showCode);
if (matchMedia("(max-width: 60rem)").matches) $("toggle").click();
$("key").value = sessionStorage.getItem(KEY) ?? "";
loadModels();
