// A client of the server's HTTP API: plain requests and a stream of chunks. Knows nothing of the page.

/** An error that the API reported: its message, code and parameter, and the HTTP status. */
export class ApiError extends Error {
  constructor(message, { code = null, param = null, status = 0 } = {}) {
    super(message);
    this.code = code;
    this.param = param;
    this.status = status;
  }

  static of(body, status) {
    const error = body?.error;
    if (typeof error === "string") return new ApiError(error, { status });
    const message = error?.message ?? body?.detail ?? `The server answered with status ${status}.`;
    return new ApiError(String(message), { code: error?.code ?? error?.type, param: error?.param, status });
  }
}

/** Gets JSON. */
export async function get(path, key, signal) {
  const response = await reach(path, { headers: headers(key), signal });
  return response.json();
}

/** Posts to /v1/chat/completions and yields the stream's chunks as they come. */
export async function* complete(body, key, signal) {
  const response = await reach("/v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw ApiError.of(chunk, response.status);
    finished ||= chunk.choices?.some((choice) => choice.finish_reason) ?? false;
    yield chunk;
  }
  if (!finished) throw new ApiError("The connection ended before the answer was complete.");
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw ApiError.of(await response.json().catch(() => null), response.status);
  return response;
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Yields the data of server-sent events, however the bytes are split; lines end in LF, CRLF or CR. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      buffer += value ?? "";
      const lines = buffer.split(/\r\n|\n|\r(?=[^\n])/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Collects the deltas of one answer to the message that the next request sends back. */
export class Answer {
  constructor() {
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    this.finish = null;
    this.usage = null;
    this.timings = null;
    this.model = null;
    this.tokens = 0;
  }

  add(chunk) {
    this.usage = chunk.usage ?? this.usage;
    this.timings = chunk.timings ?? this.timings;
    this.model = chunk.model ?? this.model;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    this.content += delta.content ?? "";
    this.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
    for (const part of delta.tool_calls ?? []) this.#call(part);
    this.finish = choice.finish_reason ?? this.finish;
    this.tokens += delta.content || delta.reasoning_content || delta.tool_calls ? 1 : 0;
  }

  #call(part) {
    const call = (this.calls[part.index ?? 0] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    call.id = part.id ?? call.id;
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }

  get empty() {
    return !this.content && !this.calls.length;
  }

  message() {
    const message = { role: "assistant", content: this.content };
    if (this.calls.length) Object.assign(message, { tool_calls: this.calls, reasoning_content: this.reasoning });
    return message;
  }
}
