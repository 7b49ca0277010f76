"""The HTTP server: every API's paths over one loaded model.

a call:    connection → guard → *_paths → bodies → a reader (openai/) → service →
           admission → answering → host
an answer: host → answering → choice → a writer (openai/) → service → streams, in the API's dialect
"""
