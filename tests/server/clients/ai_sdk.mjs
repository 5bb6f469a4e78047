// The AI SDK (ai, @ai-sdk/openai) over both APIs. Arguments: the server's URL, the model. Run by test_node_clients.py.
// Prints a line of JSON for each action: the API, the action, and the result.
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, generateObject, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const settings = { baseURL: `${url}/v1`, apiKey: "unused" };
const openai = createOpenAI(settings);
// Without a store the SDK sends the reasoning back itself if it knows that the model reasons; it then omits the
// temperature, which is added again here, so that answers are deterministic.
const fetchGreedy = (target, init) => fetch(target, { ...init, body: JSON.stringify({ ...JSON.parse(init.body), temperature: 0 }) });
const stateless = createOpenAI({ ...settings, fetch: fetchGreedy });
const Person = z.object({ name: z.string(), age: z.number().int(), city: z.string() });
const ABOUT = "Tom is 34 years old and lives in Rome. Answer in JSON with the keys name, age and city.";
const WEATHER = "What's the weather in Paris?";

const apis = {
  responses: [openai, { temperature: 0 }],
  stateless: [stateless, { providerOptions: { openai: { store: false, forceReasoning: true, reasoningSummary: "auto" } } }],
  chat: [openai.chat, { temperature: 0 }],
};

for (const [api, [provider, more]] of Object.entries(apis)) {
  const report = (action, value) => console.log(JSON.stringify([api, action, value]));
  const options = { model: provider(model), maxOutputTokens: 300, maxRetries: 0, ...more };
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
  report("text", [whole.text, whole.finishReason, whole.usage.outputTokenDetails.reasoningTokens > 0]);
  report("reasoning", whole.reasoningText ?? "");

  const streamed = streamText({ ...options, prompt: "What is 27 + 45?" });
  const deltas = await Array.fromAsync(streamed.textStream);
  report("stream", [deltas.join(""), deltas.length > 3, await streamed.finishReason]);

  const steps = await generateText({ ...options, prompt: WEATHER, tools, stopWhen: isStepCount(3) });
  report("steps", [steps.text, steps.steps.map((step) => step.finishReason)]);

  const streamedSteps = streamText({ ...options, prompt: WEATHER, tools, stopWhen: isStepCount(3) });
  const kinds = (await Array.fromAsync(streamedSteps.stream)).map((part) => part.type);
  report("streamed steps", [await streamedSteps.text, kinds.filter((kind) => /^tool-(call|result)|error/.test(kind))]);

  const forced = await generateText({ ...options, prompt: WEATHER, tools, toolChoice: "required" });
  report("required", forced.toolCalls.map((call) => [call.toolName, call.input]));

  report("asked", asked);

  const { object } = await generateObject({ ...options, schema: Person, prompt: ABOUT });
  report("object", object);

  const { output } = await generateText({ ...options, output: Output.object({ schema: Person }), prompt: ABOUT });
  report("output", output);

  const partial = streamText({ ...options, output: Output.object({ schema: Person }), prompt: ABOUT });
  const partials = await Array.fromAsync(partial.partialOutputStream);
  report("partial outputs", [partials.length > 1, partials.at(-1)]);

  const cut = await generateText({ ...options, maxOutputTokens: 20, prompt: "What is 27 + 45?" });
  report("cut", cut.finishReason);

  const controller = new AbortController();
  const aborted = streamText({ ...options, prompt: "What is 27 + 45?", abortSignal: controller.signal });
  for await (const part of aborted.stream) if (/-delta$/.test(part.type)) controller.abort();
  report("aborted", controller.signal.aborted);

  const error = await generateText({ ...options, model: provider("nobody"), prompt: "hello" }).catch((thrown) => thrown);
  report("unknown model", [APICallError.isInstance(error), error.statusCode]);
}
