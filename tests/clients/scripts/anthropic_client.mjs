// Anthropic's package for JavaScript: a message, a stream, a tool that it runs, the count of tokens, the list.
import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { API_KEY, BASE_URL, CITY_SCHEMA, getWeather, MAX_TOKENS, MODEL, PLAIN, STORY, tell, WEATHER } from "./session.mjs";

const client = new Anthropic({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const asking = (content, max_tokens) => ({ model: MODEL, temperature: 0, max_tokens, messages: [{ role: "user", content }] });

const plain = await client.messages.create(asking(PLAIN, MAX_TOKENS));
const streamed = await client.messages.stream(asking(STORY, MAX_TOKENS)).finalText();
const tool = betaTool({ name: "get_weather", description: "Weather of a city", inputSchema: CITY_SCHEMA, run: getWeather });
const last = await client.beta.messages.toolRunner({ ...asking(WEATHER, 200), tools: [tool] });
const { input_tokens: counted } = await client.messages.countTokens({ model: MODEL, messages: asking(PLAIN).messages });

tell({
  plain: plain.content[0].text,
  tokens: plain.usage.output_tokens,
  streamed,
  after: last.content.find((block) => block.type === "text")?.text,
  counted,
});
