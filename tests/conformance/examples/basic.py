from mlc_llm.serve import MLCEngine

model = "Llama-3-8B-Instruct-q4f16_1-MLC"
engine = MLCEngine(model)
response = engine.chat.completions.create(
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    model=model,
    temperature=0,
)
print(response.choices[0].message.content)
engine.terminate()
