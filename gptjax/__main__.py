from gptjax.cli import main

main()
