// What all JavaScript clients of the matrix share; as session.py for the Python ones.
export const { BASE_URL, API_KEY, MODEL, PROVIDER } = process.env;
export const VECTORS = process.env.EMBEDDING_MODEL ?? "vectors";
export const OPENAI_URL = `${BASE_URL}/v1`;
export const PLAIN = "What is Berth?";
export const STORY = "Tell me a story.";
export const WEATHER = "What is the weather in Oslo?";
export const CITY = "Which is your favourite city?";
export const MAX_TOKENS = 40;
export const asked = [];
export const CITY_SCHEMA = {
  type: "object",
  properties: { city: { type: "string", maxLength: 40 } },
  required: ["city"],
  additionalProperties: false,
};

export function getWeather({ city }) {
  asked.push(city);
  return `12 degrees in ${city}`;
}

export function tell(got) {
  console.log(JSON.stringify(asked.length ? { ...got, asked } : got));
}
