// The AI SDK with each of its providers: an answer, a stream, a tool that it runs itself, an object by a schema.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL, API_KEY, MODEL, PROVIDER } = process.env;
const given = { baseURL: `${BASE_URL}/v1`, apiKey: API_KEY };
const providers = {
  openai: () => createOpenAI(given)(MODEL),
  "openai-chat": () => createOpenAI(given).chat(MODEL),
  anthropic: () => createAnthropic(given)(MODEL),
  compatible: () => createOpenAICompatible({ ...given, name: "berth", supportsStructuredOutputs: true })(MODEL),
};
const model = providers[PROVIDER]();
const asked = [];
const tools = {
  get_weather: tool({
    description: "Weather of a city",
    inputSchema: z.object({ city: z.string() }),
    execute: ({ city }) => (asked.push(city), `12 degrees in ${city}`),
  }),
};

const plain = await generateText({ model, prompt: "What is Berth?", temperature: 0, maxOutputTokens: 40 });

let streamed = "";
for await (const piece of streamText({ model, prompt: "Tell me a story.", maxOutputTokens: 40 }).textStream) {
  streamed += piece;
}

const prompt = "What is the weather in Oslo?";
const acted = await generateText({ model, tools, prompt, temperature: 0, stopWhen: stepCountIs(3) });
const next = await generateText({
  model,
  tools,
  messages: [{ role: "user", content: prompt }, ...acted.response.messages, { role: "user", content: "Hello" }],
  maxOutputTokens: 20,
});

const output = Output.object({ schema: z.object({ city: z.string().max(40) }) });
const formed = await generateText({ model, output, prompt: "Which is your favourite city?", maxOutputTokens: 200 });

console.log(
  JSON.stringify({
    plain: plain.text,
    streamed,
    asked,
    steps: acted.steps.length,
    next: next.text,
    object: formed.output,
    tokens: plain.usage.outputTokens,
  }),
);
