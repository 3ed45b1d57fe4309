// Asks a question about pictures, through Saccade's C++ API.
//
//   ask MODEL QUESTION [PICTURE...]
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>

#include "saccade/engine.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: ask MODEL QUESTION [PICTURE...]\n";
    return 2;
  }
  try {
    saccade::EngineOptions options;
    options.model = argv[1];
    const auto engine = saccade::Engine::load(options);

    saccade::Message message{"user", {}};
    for (int i = 3; i < argc; ++i) message.content.push_back(saccade::ContentPart::of_image_file(argv[i]));
    message.content.push_back(saccade::ContentPart::of_text(argv[2]));
    saccade::Request request;
    request.messages.push_back(message);

    const saccade::Result result =
        engine->generate(request, [](const saccade::TokenEvent& token) { std::cout << token.text << std::flush; });
    const saccade::Timings& t = result.timings;
    std::cout << '\n';
    std::fprintf(stderr, "%zu tokens read, %zu written, first after %.2f s, all after %.2f s\n",
                 result.prompt_ids.size(), result.token_ids.size(), t.first_token, t.total);
    return EXIT_SUCCESS;
  } catch (const std::exception& e) {
    std::cerr << "error: " << e.what() << '\n';
    return EXIT_FAILURE;
  }
}
