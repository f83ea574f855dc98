//! What the model remembers and is asked in `memcube bench segments`: made up, about one person.

/// Instructions, the same in every prompt.
pub(super) const PREAMBLE: &str = "You are a helpful friend. Answer the question in one or two \
     short sentences, from what you remember.";

/// What there is to remember: in short, what else was said about it, and a question.
pub(super) const MEMORIES: [[&str; 3]; 24] = [
    [
        "Clara adopted a greyhound called Biscuit from the shelter in Leith last autumn.",
        "He was six years old, had raced in Ireland, and was afraid of stairs for the first month. \
         Now he sleeps on the sofa, steals socks from the laundry, and gets a long walk along the \
         harbour every morning before she goes to work.",
        "What is the name of Clara's dog, and where does it come from?",
    ],
    [
        "Clara works as a structural engineer for a firm that repairs old bridges.",
        "Her current project is a railway viaduct in Fife whose piers are being washed out by the \
         tide. She spends two days of every week on the site with a helmet and a tablet, and the \
         other three in an office above a bakery on Leith Walk.",
        "What does Clara do for a living?",
    ],
    [
        "Clara's brother Tom moved to Lisbon with his husband Rui in March.",
        "They rent a flat in Graça with a view of the river and are learning to make cheese in a \
         shared kitchen. Tom teaches English in the mornings, and they want Clara to come for the \
         feast of Saint Anthony in June.",
        "Where does Clara's brother live now?",
    ],
    [
        "Clara is allergic to walnuts and carries two adrenaline pens.",
        "It began when she was eleven, at a wedding where there was a cake with walnut cream. She \
         had to stay in hospital overnight. Pecans are a problem as well, while almonds and \
         hazelnuts are fine, as a test in Edinburgh has shown.",
        "Which food must Clara never eat?",
    ],
    [
        "Clara runs the Edinburgh half marathon every May.",
        "Her best time is one hour and fifty two minutes, from the year when it rained so hard that \
         the finish line was moved. She trains with a group that meets at the Meadows on Tuesday \
         evenings and drinks tea afterwards in a café with blue chairs.",
        "What does Clara do every May?",
    ],
    [
        "Clara plays the viola in an amateur quartet that meets on Thursdays.",
        "They are rehearsing the last quartet by Haydn for a concert in the church at Cramond. The \
         cellist is her neighbour Moira, who is seventy three and counts aloud when the others get \
         lost in the slow movement.",
        "Which instrument does Clara play?",
    ],
    [
        "Clara's mother Ingrid had a new hip fitted in January and walks with a stick.",
        "She lives alone in Perth in the house where Clara grew up, and refuses to move the bedroom \
         downstairs. Clara drives there every other Sunday, brings soup, and changes the bulbs \
         that are too high for a ladder.",
        "How is Clara's mother, and where does she live?",
    ],
    [
        "Clara drives a green Skoda from 2014 whose clutch was replaced in July.",
        "The garage in Portobello charged six hundred and forty pounds and found rust under the \
         rear seat. She means to keep it for two more winters and then buy something electric, if \
         there is a charger in her street by then.",
        "Which car does Clara drive?",
    ],
    [
        "Clara is learning Portuguese with an evening class at the university.",
        "She finds the sounds harder than the grammar and practises with Rui on the telephone every \
         Saturday. The examination is in December, and she has promised herself a weekend in Porto \
         if she gets more than seventy percent.",
        "Which language is Clara learning, and with whom does she practise?",
    ],
    [
        "Clara's flat in Leith has a leak above the kitchen window that the landlord ignores.",
        "She has written to him four times since August and has put a bucket on the shelf. The \
         letting agency says that the roof belongs to the whole building and that two owners on \
         the third floor do not want to pay their share.",
        "What is wrong with Clara's flat?",
    ],
    [
        "Clara wants to walk the West Highland Way in September with her friend Priya.",
        "They have booked five nights, the last two in the hostel at Kinlochleven. Priya has bought \
         boots that are half a size too small and is wearing them to work so that they give, and \
         Biscuit will stay with Moira for that week.",
        "What are Clara and Priya planning for September?",
    ],
    [
        "Clara does not drink coffee after noon because she sleeps badly.",
        "She tried giving it up altogether in spring and had headaches for nine days. Now it is two \
         cups before eleven, then green tea, and camomile at night, which she says tastes like a \
         wet meadow and helps a little all the same.",
        "When does Clara drink coffee?",
    ],
    [
        "Clara's favourite novel is The Summer Book by Tove Jansson.",
        "She has read it every July since she was nineteen, always in the same paperback with a \
         coffee ring on the cover. When she lends it to somebody, she buys another copy for them \
         rather than part with her own.",
        "What is Clara's favourite book?",
    ],
    [
        "Clara has her dentist's appointment on the ninth of October at half past eight.",
        "A crown on the upper left has come loose for the second time. Doctor Sinclair wants to \
         replace it with a ceramic one, which costs four hundred pounds, and Clara has asked her \
         insurance whether any of that is covered.",
        "When does Clara have to see the dentist?",
    ],
    [
        "Clara grows tomatoes and chillies on the roof of her building.",
        "This year the plants got blight in August after two weeks of rain, and only the yellow \
         cherry tomatoes survived. She wants to try a greenhouse made of old windows, for which \
         the neighbour from the ground floor has already collected nine.",
        "What does Clara grow on the roof?",
    ],
    [
        "Clara's oldest friend Nadia is getting married in Inverness on the second of November.",
        "Clara has to give a speech and is more nervous about it than about any bridge. The dress \
         code is tartan or nothing silly, the band plays until two, and Tom and Rui are coming \
         over from Lisbon for it.",
        "Who is getting married, and where?",
    ],
    [
        "Clara broke her left wrist ice skating when she was fourteen.",
        "It was set badly and aches when the weather changes, which is why she gave up the violin \
         for the larger viola with a softer bow hold. A physiotherapist showed her three exercises \
         that she does while the kettle boils.",
        "Which bone did Clara break as a child?",
    ],
    [
        "Clara volunteers at the food bank in Granton on the first Saturday of the month.",
        "She sorts what the supermarkets send and has built shelves that no longer lean. In winter \
         they serve a hundred and twenty families a week, and she has asked her firm to pay for a \
         second freezer.",
        "Where does Clara volunteer?",
    ],
    [
        "Clara votes by post because she was once at a site on the day of an election.",
        "She keeps the papers in the drawer under the toaster so that she sees them at breakfast. \
         In May she sent hers three days before the date, and the council lost it, about which she \
         wrote a letter to the Scotsman that was printed.",
        "How does Clara vote?",
    ],
    [
        "Clara owes Priya eighty pounds for the train tickets to York.",
        "They went in April to see the railway museum and a play about a lighthouse. Clara's card \
         did not work at the machine, so Priya paid for both, and neither of them has thought of it \
         when the other one had money in her hand.",
        "How much does Clara owe Priya, and what for?",
    ],
    [
        "Clara's manager at the firm is called Douglas and retires at Christmas.",
        "He has been there for thirty one years and knows by heart which bridges were built with \
         bad steel. Clara has been asked whether she wants his post and has not answered, because \
         it would mean fewer days outside.",
        "Who is Clara's manager, and when does he retire?",
    ],
    [
        "Clara hates flying and takes the night train whenever there is one.",
        "To reach Lisbon she goes by Eurostar to Paris and then by way of Hendaye, which takes two \
         days and three books. She flew once, to Bergen, and held the hand of a stranger who turned \
         out to be a pilot on leave.",
        "How does Clara like to travel?",
    ],
    [
        "Clara has painted her kitchen the colour of egg yolk.",
        "The tin said Sunlit Meadow. It took three coats, because the wall had been dark red, and \
         Biscuit walked through the tray and left prints as far as the bathroom, one of which she \
         has kept and put a frame around.",
        "Which colour is Clara's kitchen?",
    ],
    [
        "Clara's birthday is on the twentieth of February, and she turns forty next year.",
        "She does not want a party. She wants a cottage on Mull for a long weekend, with Priya, \
         Nadia, Tom, Rui and a fire, and nobody is to sing. Moira has promised a cake without nuts \
         in the shape of a viaduct.",
        "When is Clara's birthday?",
    ],
];
