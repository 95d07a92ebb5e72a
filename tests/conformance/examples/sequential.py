from mlc_llm.serve import MLCEngine

for model in ("Llama-3-8B-Instruct-q4f16_1-MLC", "Qwen2.5-1.5B-Instruct-q0f16-MLC"):
    engine = MLCEngine(model, device="auto", mode="local")
    answer = engine.chat.completions.create(
        messages=[{"role": "user", "content": "What is the capital of France?"}], model=model, temperature=0
    )
    print(answer.choices[0].message.content)
    engine.terminate()
