from mlc_llm.serve import MLCEngine

engine = MLCEngine("Llama-3-8B-Instruct-q4f16_1-MLC")
print(
    engine.chat.completions.create(
        messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    .choices[0]
    .message.content
)
engine.terminate()
engine.terminate()
engine.terminate()
