// The ollama client, in JavaScript: everything that its users do.

import { Ollama } from 'ollama'

const headers = { authorization: `Bearer ${process.env.ADMIN_KEY}` }
const client = new Ollama({ host: process.env.BASE_URL, headers })
const { MODEL: model, EMBEDDER: embedder } = process.env
const question = { role: 'user', content: 'What is the weather in Oslo?' }
const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const place = { ...city, properties: { city: { enum: ['Oslo', 'Bergen'] } } }
const description = 'Weather of a city'
const tools = [{ type: 'function', function: { name: 'get_weather', description, parameters: city } }]
const options = { temperature: 0, num_predict: 100 }

const messages = [question]
const asked = []
for await (const part of await client.chat({ model, messages, tools, options, stream: true })) {
  for (const call of part.message.tool_calls ?? []) asked.push(call.function.arguments.city)
}
const first = await client.chat({ model, messages, tools, options })
messages.push(first.message, { role: 'tool', tool_name: 'get_weather', content: '12 degrees' })
const last = await client.chat({ model, messages, tools, options: { num_predict: 20 } })

let streamed = ''
let final
for await (const part of await client.generate({ model, prompt: 'Tell me a story.', stream: true, options: { num_predict: 20 } })) {
  streamed += part.response
  final = part
}
const formatted = await client.generate({ model, prompt: 'Name a city.', format: place, options })
const listed = (await client.list()).models.map((one) => one.model)
const shown = await client.show({ model })
await client.generate({ model, keep_alive: '10m' })
const loaded = (await client.ps()).models.map((one) => one.model)
const unloaded = (await client.chat({ model, messages: [], keep_alive: 0 })).done_reason
await client.copy({ source: model, destination: 'twin' })
await client.delete({ model: 'twin' })
const pulled = []
for await (const part of await client.pull({ model: process.env.HUB_MODEL, stream: true })) pulled.push(part.status)
await client.delete({ model: process.env.HUB_MODEL })
const vectors = (await client.embed({ model: embedder, input: ['one', 'two'] })).embeddings
const missing = await client.chat({ model: 'nobody', messages: [question] }).catch((error) => [error.status_code, error.message])

console.log(JSON.stringify({
  asked, asked_whole: first.message.tool_calls.map((call) => call.function.arguments.city), next: last.message.content,
  streamed, tokens: [final.prompt_eval_count, final.eval_count], city: JSON.parse(formatted.response).city,
  listed, capabilities: shown.capabilities, loaded, unloaded, pulled: [pulled[0], pulled.at(-1)],
  sizes: [vectors.length, vectors[0].length], missing,
}))
