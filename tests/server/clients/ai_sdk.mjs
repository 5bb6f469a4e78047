// The AI SDK (ai, @ai-sdk/openai) over both APIs. Arguments: the server's URL, the model. Run by test_node_clients.py.
// Writes a line of JSON for each thing that it did: the API, what, and the result.
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, generateObject, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const settings = { baseURL: `${url}/v1`, apiKey: "unused" };
const openai = createOpenAI(settings);
// Without a store the SDK brings the reasoning back itself, if it takes the model for one that reasons; it then leaves
// the temperature out, which is put in again here, so that answers are the same every time.
const greedily = (target, init) => fetch(target, { ...init, body: JSON.stringify({ ...JSON.parse(init.body), temperature: 0 }) });
const stateless = createOpenAI({ ...settings, fetch: greedily });
const Person = z.object({ name: z.string(), age: z.number().int(), city: z.string() });
const ABOUT = "Tom is 34 years old and lives in Rome. Answer in JSON with the keys name, age and city.";
const WEATHER = "What's the weather in Paris?";

const ways = {
  responses: [openai, { temperature: 0 }],
  stateless: [stateless, { providerOptions: { openai: { store: false, forceReasoning: true, reasoningSummary: "auto" } } }],
  chat: [openai.chat, { temperature: 0 }],
};

for (const [api, [named, more]] of Object.entries(ways)) {
  const said = (what, value) => console.log(JSON.stringify([api, what, value]));
  const options = { model: named(model), maxOutputTokens: 300, maxRetries: 0, ...more };
  const asked = [];
  const tools = {
    get_weather: tool({
      description: "Current weather in a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => {
        asked.push(city);
        return { temperature: 21, condition: "sunny" };
      },
    }),
  };

  const whole = await generateText({ ...options, prompt: "What is 27 + 45?" });
  said("text", [whole.text, whole.finishReason, whole.usage.outputTokenDetails.reasoningTokens > 0]);
  said("reasoning", whole.reasoningText ?? "");

  const streamed = streamText({ ...options, prompt: "What is 27 + 45?" });
  const pieces = await Array.fromAsync(streamed.textStream);
  said("stream", [pieces.join(""), pieces.length > 3, await streamed.finishReason]);

  const steps = await generateText({ ...options, prompt: WEATHER, tools, stopWhen: isStepCount(3) });
  said("steps", [steps.text, steps.steps.map((step) => step.finishReason)]);

  const stepping = streamText({ ...options, prompt: WEATHER, tools, stopWhen: isStepCount(3) });
  const kinds = (await Array.fromAsync(stepping.stream)).map((part) => part.type);
  said("streamed steps", [await stepping.text, kinds.filter((kind) => /^tool-(call|result)|error/.test(kind))]);

  const forced = await generateText({ ...options, prompt: WEATHER, tools, toolChoice: "required" });
  said("required", forced.toolCalls.map((call) => [call.toolName, call.input]));

  said("asked", asked);

  const { object } = await generateObject({ ...options, schema: Person, prompt: ABOUT });
  said("object", object);

  const { output } = await generateText({ ...options, output: Output.object({ schema: Person }), prompt: ABOUT });
  said("output", output);

  const partial = streamText({ ...options, output: Output.object({ schema: Person }), prompt: ABOUT });
  const grown = await Array.fromAsync(partial.partialOutputStream);
  said("partial outputs", [grown.length > 1, grown.at(-1)]);

  const cut = await generateText({ ...options, maxOutputTokens: 20, prompt: "What is 27 + 45?" });
  said("cut", cut.finishReason);

  const gone = new AbortController();
  const left = streamText({ ...options, prompt: "What is 27 + 45?", abortSignal: gone.signal });
  for await (const part of left.stream) if (/-delta$/.test(part.type)) gone.abort();
  said("aborted", gone.signal.aborted);

  const refused = await generateText({ ...options, model: named("nobody"), prompt: "hello" }).catch((error) => error);
  said("unknown model", [APICallError.isInstance(refused), refused.statusCode]);
}
