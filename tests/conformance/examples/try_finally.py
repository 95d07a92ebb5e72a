from mlc_llm.serve import MLCEngine

engine = MLCEngine("Llama-3-8B-Instruct-q4f16_1-MLC")
try:
    for chunk in engine.chat.completions.create(
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        stream=True,
    ):
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()
finally:
    engine.terminate()
